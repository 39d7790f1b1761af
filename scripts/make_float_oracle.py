"""Writes the next-token distributions of `transformers` in float32: tests/parity/golden/*_oracle.json.

    python scripts/make_float_oracle.py

`transformers` decodes the file with the `gguf` package; no code of this project computes the numbers. The files also
have the divergence of llama.cpp, which reads the file by itself, so the script needs llama-cpp-python 0.3.36 too.
The models are the default one, and Gemma 3 270M if `make gemma` has fetched it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from llamacpp_model import SOURCE, LlamaCpp
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
SMOLLM2 = Path(os.environ.get("MISTRALRS_TEST_MODEL", ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
GEMMA3 = Path(os.environ.get("MISTRALRS_TEST_GEMMA", ROOT / ".models" / "gemma-3-270m.Q4_K_M.gguf"))
POSITIONS = 64
BEST = 20
GEMMA3_TOKENS = 640
"""Tokens of Gemma's sequence: more than its sliding window, which is 512."""


def main() -> int:
    sys.path.insert(0, str(ROOT))
    if not SMOLLM2.is_file():
        print(f"{SMOLLM2} is not here; to get it: make model", file=sys.stderr)
        return 1
    # texts and their tokens by llama.cpp; the sequence is all of these in order
    rows = json.loads((ROOT / "tests" / "text" / "smollm2_tokens.json").read_text(encoding="utf-8"))
    _write("smollm2", SMOLLM2, [token for row in rows for token in row["special"]])
    if not GEMMA3.is_file():
        print(f"{GEMMA3} is not here; its oracle stays as it is", file=sys.stderr)
        return 0
    prose = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    model = LlamaCpp(GEMMA3, length=8, exact=True)
    _write("gemma3", GEMMA3, model.tokens(prose)[:GEMMA3_TOKENS])
    return 0


def _write(name: str, path: Path, ids: list[int]) -> None:
    from tests.parity.divergence import divergences

    positions = [round(i * (len(ids) - 1) / (POSITIONS - 1)) for i in range(POSITIONS)]
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, positions]
        logits = model.lm_head(hidden)
    best = torch.log_softmax(logits.double(), dim=-1).topk(BEST)
    theirs = torch.from_numpy(LlamaCpp(path, length=len(ids), exact=False).logits(ids, positions))
    golden = {
        "ids": ids,
        "positions": positions,
        "tokens": best.indices.tolist(),
        "logprobs": [[round(value, 5) for value in row] for row in best.values.tolist()],
        "llamacpp": {"source": SOURCE, "kl": round(divergences(theirs, best.indices, best.values).mean().item(), 6)},
    }
    target = ROOT / "tests" / "parity" / "golden" / f"{name}_oracle.json"
    lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in golden.items())
    target.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: {POSITIONS} positions of {len(ids)} tokens")


if __name__ == "__main__":
    sys.exit(main())
