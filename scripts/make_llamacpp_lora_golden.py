"""Writes tests/adapters/golden/llamacpp_lora.json: llama.cpp's logits of tiny GGUF files with GGUF LoRA files.

Run `python scripts/make_llamacpp_lora_golden.py` in the development environment with llama-cpp-python 0.3.36 installed
as well. Keys and values are kept in float32.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from llamacpp_model import SOURCE, LlamaCpp

ROOT = Path(__file__).parents[1]


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from tests.adapters.llamacpp_lora import GOLDEN, VARIANTS_WITH_GOLDEN, write_files
    from tests.architectures import VARIANTS, write_folder
    from tests.parity.llamacpp import LAST, TOKENS, digest

    GOLDEN.parent.mkdir(exist_ok=True)
    golden: dict[str, object] = {"source": SOURCE}
    for name in VARIANTS_WITH_GOLDEN:
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_folder(Path(temporary) / name, VARIANTS[name])
            path, adapter = write_files(Path(temporary), name, folder)
            model = LlamaCpp(path, length=128, exact=True, adapter=adapter)
            [logits] = model.logits(TOKENS, [LAST])
            model.close()
            row = [float(f"{x:.6g}") for x in logits.tolist()]
            golden[name] = {"model": digest(path), "adapter": digest(adapter), "logits": row}
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{GOLDEN.relative_to(ROOT)}: {len(VARIANTS_WITH_GOLDEN)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
