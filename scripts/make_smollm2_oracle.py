"""Writes what `transformers` in float32 gives the default model's next tokens: tests/parity/golden/smollm2_oracle.json.

    python scripts/make_smollm2_oracle.py

`transformers` decodes the file with the `gguf` package; nothing of this project is in the numbers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
MODEL = Path(os.environ.get("MISTRALRS_TEST_MODEL", ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
GOLDEN = ROOT / "tests" / "parity" / "golden" / "smollm2_oracle.json"
TOKENS = ROOT / "tests" / "text" / "smollm2_tokens.json"
"""Texts and their tokens as llama.cpp splits them; all of them one behind the other are the sequence."""
POSITIONS = 64
BEST = 20


def main() -> int:
    if not MODEL.is_file():
        print(f"{MODEL} is not here; to get it: make model", file=sys.stderr)
        return 1
    rows = json.loads(TOKENS.read_text(encoding="utf-8"))
    ids = [token for row in rows for token in row["special"]]
    model = AutoModelForCausalLM.from_pretrained(MODEL.parent, gguf_file=MODEL.name, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    positions = [round(i * (len(ids) - 1) / (POSITIONS - 1)) for i in range(POSITIONS)]
    best = torch.log_softmax(logits[positions].double(), dim=-1).topk(BEST)
    golden = {
        "ids": ids,
        "positions": positions,
        "tokens": best.indices.tolist(),
        "logprobs": [[round(value, 5) for value in row] for row in best.values.tolist()],
    }
    lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in golden.items())
    GOLDEN.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"{GOLDEN} has {POSITIONS} positions of {len(ids)} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
