"""Writes tests/parity/golden/llamacpp_*.json: llama.cpp's logits of the tiny GGUF files of every architecture.

Run `python scripts/make_llamacpp_golden.py` in the development environment with llama-cpp-python 0.3.36 installed as
well. Keys and values are kept in float32.
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
    from tests.architectures import VARIANTS, write_folder
    from tests.parity import llamacpp

    llamacpp.GOLDEN.mkdir(exist_ok=True)
    for name, variant in VARIANTS.items():
        if not variant.in_gguf:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_folder(Path(temporary) / name, variant)
            files = []
            for case in llamacpp.CASES:
                if case.variants is not None and name not in case.variants:
                    continue
                path = case.write(Path(temporary) / "tiny.gguf", name, folder)
                model = LlamaCpp(path, length=128, exact=True)
                logits = model.logits(llamacpp.TOKENS, range(len(llamacpp.TOKENS)))
                model.close()
                rows = [[float(f"{x:.6g}") for x in logits[position].tolist()] for position in case.positions]
                files.append({"case": case.name, "digest": llamacpp.digest(path), "logits": rows})
        golden = {"source": SOURCE, "files": files}
        target = llamacpp.GOLDEN / f"llamacpp_{name}.json"
        target.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"{target.relative_to(ROOT)}: {len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
