"""Writes tests/parity/golden/greedy_*.json: llama.cpp's most likely tokens after some prompts.

    python scripts/make_greedy_golden.py

It needs llama-cpp-python 0.3.36. The models are the default one, and Gemma 3 270M if `make gemma` has fetched it.
llama.cpp converts the weights to float32 first: with quantized weights it rounds activations to 8 bits, which changes
the margin between two tokens by up to a third of a nat and makes their order random.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from llamacpp_model import SOURCE, LlamaCpp, decoded

ROOT = Path(__file__).parents[1]
MODELS = {
    "smollm2": Path(os.environ.get("MISTRALRS_TEST_MODEL", ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf")),
    "gemma3": Path(os.environ.get("MISTRALRS_TEST_GEMMA", ROOT / ".models" / "gemma-3-270m.Q4_K_M.gguf")),
}
LENGTH = 256


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from tests.parity import greedy

    for name, path in MODELS.items():
        if not path.is_file():
            print(f"{path} is not here; {greedy.path_of(name).name} stays as it is", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as temporary:
            model = LlamaCpp(decoded(path, Path(temporary) / "f32.gguf"), length=LENGTH, exact=True)
            entries = [_continued(model, prompt, greedy.COUNT) for prompt in greedy.PROMPTS[name]]
            model.close()
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        text = f'{{"source": {json.dumps(SOURCE)}, "prompts": [\n{lines}\n]}}\n'
        greedy.path_of(name).write_text(text, encoding="utf-8")
        print(f"{greedy.path_of(name).relative_to(ROOT)}: {len(entries)} prompts")
    return 0


def _continued(model: LlamaCpp, prompt: str, count: int) -> dict[str, object]:
    """Returns the fields of ``tests.parity.greedy.Golden``."""
    ids = model.tokens(prompt)
    tokens: list[int] = []
    second: list[int] = []
    margins: list[float] = []
    model.forget()
    given = ids
    for _ in range(count):
        [logits] = model.logits(given, [len(given) - 1])
        next_best, best = (int(token) for token in np.argsort(logits)[-2:])
        tokens.append(best)
        second.append(next_best)
        margins.append(round(float(logits[best] - logits[next_best]), 4))
        given = [best]
    return {"prompt": prompt, "ids": ids, "tokens": tokens, "second": second, "margins": margins}


if __name__ == "__main__":
    sys.exit(main())
