"""Decode under grammars beside free text from the same engine, in turns in one run.

    python -m benchmarks.grammars MODEL.gguf [--rounds 5] [--tokens 64] [--threads N]

Answers have the same number of tokens with a grammar and without, and no draft tokens; grammars are compiled before.
Prints a table of ratios; nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Finished
from mistralrs.grammar.grammar_text import GrammarText

SEQUENCES = 16
PROMPT = "Write a long text about the sea."
TEXTS = [GrammarText("regex", rf"([A-Z][a-z]{{1,12}}([ ,][a-z]{{1,{12 + n}}}){{5,40}}\. ?){{9,}}") for n in range(8)]
SCHEMAS = [
    {"type": "array", "minItems": 90 + n, "items": {"type": "object", "additionalProperties": {"type": "string"}}}
    for n in range(7)
]
FREE_JSON = GrammarText("json_schema", json.dumps(SCHEMAS[0]))
DIFFERENT = [*TEXTS, *(GrammarText("json_schema", json.dumps(schema)) for schema in SCHEMAS)]
FORM = {
    f"the_{name}_of_the_vessel_as_it_was_registered": {"enum": [f"{name} unknown at present", f"{name} not applicable"]}
    for name in ("name", "owner", "harbour", "length", "purpose", "insurer", "flag", "captain")
}
FORCED = GrammarText(
    "json_schema",
    json.dumps({"type": "object", "properties": FORM, "required": list(FORM), "additionalProperties": False}),
)
FREE: Sequence[GrammarText | None] = [None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    options = LoadOptions(threads=args.threads, prefix_cache_n=0, max_draft=0, max_seqs=SEQUENCES)
    cases: dict[str, tuple[Sequence[GrammarText | None], Sequence[GrammarText | None]]] = {
        "1 sequence, text by a regex": (FREE, TEXTS[:1]),
        "1 sequence, JSON of any names": (FREE, [FREE_JSON]),
        f"{SEQUENCES} sequences, one grammar": (FREE * SEQUENCES, TEXTS[:1] * SEQUENCES),
        f"{SEQUENCES} sequences, {SEQUENCES} grammars": (FREE * SEQUENCES, [*DIFFERENT, FORCED][:SEQUENCES]),
        "1 sequence, schema with many forced tokens": (FREE, [FORCED]),
    }
    print("| decode | free, tokens/s | with grammar, tokens/s | ratio |\n| --- | --- | --- | --- |")
    with LocalModel.load(ModelSource(None, args.model, None, None), options) as model:
        for name, (free, constrained) in cases.items():
            speed(model, constrained, args.tokens)  # compiles
            pairs = [
                (speed(model, free, args.tokens), speed(model, constrained, args.tokens)) for _ in range(args.rounds)
            ]
            plain, masked = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(after / before for before, after in pairs)
            print(f"| {name} | {plain:.1f} | {masked:.1f} | {ratio:.3f} |", flush=True)


def speed(model: LocalModel, grammars: Sequence[GrammarText | None], tokens: int) -> float:
    """Tokens a second of requests with these grammars, served at once; prompts, which are short, included."""
    prompt = tuple(model.tokenizer.encode(PROMPT, special=False, bos=model.tokenizer.add_bos))
    sampling = SamplingParams(temperature=0.7, max_tokens=tokens, ignore_eos=True)
    started = time.perf_counter()
    streams = [
        model.engine.submit(Request(prompt, replace(sampling, seed=seed), grammar=grammar, reuse=False))
        for seed, grammar in enumerate(grammars)
    ]
    ends = [list(stream)[-1] for stream in streams]
    seconds = time.perf_counter() - started
    for end in ends:
        if not isinstance(end, Finished):
            raise SystemExit(f"a request failed: {end}")
    return sum(end.usage.completion_tokens for end in ends) / seconds


if __name__ == "__main__":
    main()
