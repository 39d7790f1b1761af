"""Writes tests/engine/golden/samplers.json: the results of llama.cpp's typical-p, XTC and DRY for some logits.

Run `python scripts/make_sampler_golden.py` in the development environment with llama-cpp-python 0.3.36 installed as
well.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from llamacpp_model import SOURCE, llama_cpp

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "engine" / "golden" / "samplers.json"
SIZE = 60
"""The size of the vocabulary for samplers that do not depend on the spelling of tokens."""
CUTS = [
    *(("typical_p", {"typical_p": share}, spread) for share in (0.1, 0.4, 0.7, 0.95) for spread in (0.5, 1.5, 4.0)),
    *(("xtc", {"xtc_threshold": least}, spread) for least in (0.02, 0.05, 0.1, 0.2) for spread in (1.0, 2.0, 3.0)),
]
BREAKERS = ["\n", ":", '"', "*"]
TEXTS = [
    "the other and the other and the other and",
    "he said: the other thing is here; she said: the other thing is",
    'a "hat" and the hat\nand the hat\nand the hat',
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "in the house, in the house - in the hou",
    "* the one\n* the other\n* the",
    "stop. and the hat stop. and the hat",
    *("".join(Random(seed).choices("xyz:", weights=(4, 4, 4, 1), k=80)) for seed in range(4)),
]
# llama.cpp finds a longer breaker only in one of its tokenizations; these breakers have no other.
DRY: list[dict[str, Any]] = [
    {},
    {"dry_multiplier": 0.8, "dry_allowed_length": 1},
    {"dry_allowed_length": 4, "dry_base": 1.2},
    {"dry_last_n": 10},
    {"dry_base": 3.0, "dry_breakers": []},
    {"dry_breakers": [*BREAKERS, "and", "is"]},
    {"dry_breakers": ["stop.", "hat"]},
    {"dry_base": 1.0},
]


def main() -> int:
    sys.path.insert(0, str(ROOT))
    random = Random(0)
    cuts = []
    for name, params, spread in CUTS:
        logits = [round(random.gauss(0, spread), 3) for _ in range(SIZE)]
        cuts.append({"stage": name, "params": params, "logits": logits, "kept": _cut(name, params, logits)})
    dry = _dry_cases()
    golden = {"source": SOURCE, "cuts": cuts, "dry": dry}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{GOLDEN.relative_to(ROOT)}: {len(cuts)} cuts, {len(dry)} of DRY")
    return 0


def _cut(name: str, params: dict[str, float], logits: list[float]) -> list[int]:
    """Returns the tokens that a sampler keeps."""
    if name == "typical_p":
        sampler = llama_cpp.llama_sampler_init_typical(params["typical_p"], 1)
    else:
        sampler = llama_cpp.llama_sampler_init_xtc(1.0, params["xtc_threshold"], 1, 0)
    return sorted(_apply(sampler, logits))


def _apply(sampler: Any, logits: list[float]) -> dict[int, float]:
    """Returns the logits of the kept tokens, by token. Frees the sampler."""
    data = (llama_cpp.llama_token_data * len(logits))(*((token, logit, 0.0) for token, logit in enumerate(logits)))
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    left = {array.data[place].id: array.data[place].logit for place in range(array.size)}
    llama_cpp.llama_sampler_free(sampler)
    return left


def _dry_cases() -> list[dict[str, object]]:
    """Returns the penalties after each text, with the vocabulary of the tiny model."""
    from mistralrs.loading.gguf_file import GgufFile
    from mistralrs.text.tokenizer import Tokenizer
    from tests.tiny import write_tiny

    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny(Path(folder) / "tiny.gguf").path
        with GgufFile.open(path) as file:
            tokenizer = Tokenizer.from_gguf(file.metadata)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        cases: list[dict[str, object]] = []
        for text in TEXTS:
            tokens = tokenizer.encode(text, special=False)
            for params in DRY:
                penalties = _penalties(vocabulary, params, tokens, size=tokenizer.vocab_size)
                cases.append({"params": params, "tokens": tokens, "penalties": penalties})
        llama_cpp.llama_model_free(model)
    return cases


def _penalties(vocabulary: Any, params: dict[str, Any], tokens: list[int], *, size: int) -> list[tuple[int, float]]:
    breakers = [breaker.encode() for breaker in params.get("dry_breakers", BREAKERS)]
    sampler = llama_cpp.llama_sampler_init_dry(
        vocabulary,
        params.get("dry_multiplier", 1.0),
        params.get("dry_base", 1.75),
        params.get("dry_allowed_length", 2),
        params.get("dry_last_n", 4096),
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )
    for token in tokens:
        llama_cpp.llama_sampler_accept(sampler, token)
    left = _apply(sampler, [0.0] * size)
    return [(token, float(f"{-logit:.6g}")) for token, logit in sorted(left.items()) if logit]


if __name__ == "__main__":
    sys.exit(main())
