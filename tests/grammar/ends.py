"""Answers of an engine under random grammars that `max_tokens` cuts or not: the reasons of their ends."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import EngineConfig, KvGroup, Request, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Delta, Failed, Stream
from mistralrs.errors import RequestError
from mistralrs.grammar.compile_grammar import CompiledGrammar
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.ops.buffer import Buffer
from tests.buffers import buffer_of
from tests.grammar.random_grammars import Case
from tests.grammar.walks import allowed, compiled, table, tokenizer

LONGEST = 80
"""Tokens of an answer, at most."""
_ANSWERS_OF_ONE = 5
_GRAMMARS_AT_ONCE = 6
_END_BIAS = 2.5
"""A logit of the end tokens, so that some answers end by themselves."""


@dataclass
class Ends:
    """The counts of one kind of grammar."""

    stopped: int = 0
    cut: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def answers(self) -> int:
        return self.stopped + self.cut


class NoisyModel:
    """Logits that no token decides: each walk is as likely as the grammar lets it be."""

    vocab_size = tokenizer().vocab_size
    scalings: None = None
    logits_buffer: None = None

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._bias = torch.zeros(self.vocab_size)
        self._bias[list(table().eos_ids)] = _END_BIAS

    def forward(self, batch: Batch, cancel_flag: CancelFlag, sampling: None = None) -> Buffer:
        rows = torch.randn((len(batch.logits_indices), self.vocab_size), generator=self._random)
        return buffer_of(rows + self._bias)


def run_ends(make: Callable[[random.Random], Case], count: int, *, seed: int) -> Ends:
    """Asks an engine for answers of random lengths, in batches, until ``count`` have ended."""
    rng, ends = random.Random(seed), Ends()
    config = EngineConfig(
        kv_groups=(KvGroup(4096),), max_model_len=LONGEST + 8, max_seqs=16, max_batch_tokens=64, block_size=4
    )
    with closing(Engine(NoisyModel(seed), tokenizer(), config)) as engine:  # type: ignore[arg-type]
        while ends.answers < count:
            cases = list(itertools.islice(_usable(make, rng), _GRAMMARS_AT_ONCE))
            asked = [(*case, _request(case[0], rng)) for case in cases for _ in range(_ANSWERS_OF_ONE)]
            streams = [engine.submit(request) for _, _, request in asked]
            for (case, grammar, request), stream in zip(asked, streams, strict=True):
                _judge(ends, case, grammar, request, stream)
    return ends


def _usable(make: Callable[[random.Random], Case], rng: random.Random) -> Iterator[tuple[Case, CompiledGrammar]]:
    while True:
        case = make(rng)
        try:
            grammar = compiled(case.kind, case.text)
        except RequestError:
            continue
        if not grammar.warnings:
            yield case, grammar


def _request(case: Case, rng: random.Random) -> Request:
    max_tokens = round(LONGEST ** rng.random())  # short ones are cut, long ones end
    sampling = SamplingParams(temperature=1, seed=rng.randrange(1 << 30), max_tokens=max_tokens)
    return Request((40, 41), sampling, grammar=GrammarText(case.kind, case.text))  # type: ignore[arg-type]


def _judge(ends: Ends, case: Case, grammar: CompiledGrammar, request: Request, stream: Stream) -> None:
    *news, end = stream
    if isinstance(end, Failed):  # too expensive to go on with
        ends.failed += 1
        return
    tokens = [token for event in news if isinstance(event, Delta) for token in event.tokens]
    answer = b"".join(table().token_bytes[token] for token in tokens)
    shown = f"{case.text!r} gave {answer!r}, and the reason {end.reason}"
    if end.reason == "stop":
        ends.stopped += 1
        if not _is_whole(case, answer):
            ends.wrong.append(f"{shown}, but it is not whole")
        return
    ends.cut += 1
    constraint = grammar.constraint()
    if len(tokens) != request.sampling.max_tokens:
        ends.wrong.append(f"{shown}, after {len(tokens)} of {request.sampling.max_tokens} tokens")
    elif constraint.accept(tokens) < len(tokens):
        ends.wrong.append(f"{shown}, and its grammar does not allow it")
    elif set(allowed(constraint)) <= set(table().eos_ids):
        ends.wrong.append(f"{shown}, but nothing could follow")


def _is_whole(case: Case, answer: bytes) -> bool:
    try:
        return case.check(answer)
    except ValueError:  # half of a character, or no JSON
        return False
