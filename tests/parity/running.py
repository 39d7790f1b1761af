"""Runs loaded models step by step, without the engine, so that a test chooses the sequences of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.model_executor import ModelExecutor
from mistralrs.engine.model_runner import ModelRunner
from mistralrs.engine.sequence import ExecutorState
from mistralrs.loading.convert import Dtype
from mistralrs.loading.kv_dtype import ChosenKvDtype
from mistralrs.loading.pipeline import BLOCK_SIZE, LoadPlan, Model, load
from mistralrs.models.parts import AdapterMixture, WeightMerge
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend, resolve
from mistralrs.ops.linear import AdapterUse
from tests.buffers import tensor_of


@dataclass(frozen=True, slots=True)
class Running:
    """A model and the runner that the engine would drive."""

    model: Model
    runner: ModelExecutor
    backend: Backend

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        precision: str = "high",
        isa: str | None = None,
        threads: int = 2,
        isq: str | None = None,
        gqa: int = 1,
        max_model_len: int | None = None,
        dtype: Dtype = "auto",
        kv_cache_dtype: ChosenKvDtype = "auto",
        merge: Callable[[str, DecoderSpec], WeightMerge] | None = None,
        adapter_slots: int = 0,
        in_place: bool = False,
        mixture: Callable[[str, DecoderSpec], AdapterMixture] | None = None,
    ) -> Running:
        backend = resolve("cpu", threads=threads, isa=isa).backend
        model = load(
            path,
            backend,
            LoadPlan(
                max_seqs=8,
                max_batch_tokens=512,
                precision=precision,
                isq=isq,
                gqa=gqa,
                max_model_len=max_model_len,
                dtype=dtype,
                kv_cache_dtype=kv_cache_dtype,
                merge=merge,
                adapter_slots=adapter_slots,
                in_place=in_place,
                mixture=mixture,
            ),
        )
        return cls(model, ModelRunner(model.decoder, vocab_size=model.spec.vocab_size), backend)

    def whole(self, tokens: Sequence[int], uses: Sequence[AdapterUse] = ()) -> torch.Tensor:
        """Returns (tokens, vocabulary) logits of a sequence alone, as many at once as a step may return.

        ``uses``: the adapters that act on it.
        """
        text = Text(list(tokens), seed=0)
        limit = self.model.limits.max_logits
        chunks = [(text, start, min(start + limit, len(tokens))) for start in range(0, len(tokens), limit)]
        return torch.cat([self.step(chunk, uses=[uses])[0] for chunk in chunks])

    def step(self, *chunks: Chunk, uses: Sequence[Sequence[AdapterUse]] = ()) -> list[torch.Tensor]:
        """Returns the logits of every token of every chunk, all in one step.

        ``uses``: for each chunk the adapters that act on it; empty: none acts on any.
        """
        groups = self.model.limits.kv_groups
        batch = Batch([], [], [[] for _ in groups], [0], [], [[] for _ in groups], [])
        for text, start, end in chunks:
            assert max(text.blocks) < min(group.num_blocks for group in groups)
            batch.tokens.extend(text.tokens[start:end])
            batch.positions.extend(range(start, end))
            batch.query_start_loc.append(len(batch.tokens))
            batch.seq_lens.append(end)
            batch.states.append(text.state)
            for slots, tables in zip(batch.slot_mapping, batch.block_tables, strict=True):
                slots.extend(text.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(start, end))
                tables.append(text.blocks)
        batch.logits_indices.extend(range(len(batch.tokens)))
        batch.adapters.extend(list(each) for each in uses)
        logits = tensor_of(self.runner.forward(batch, CancelFlag()))[:, : self.runner.vocab_size].clone()
        return list(logits.split([end - start for _, start, end in chunks]))


class Text:
    """A sequence with blocks of its own, the same in every KV group.

    Texts of different ``seed`` share none, if they have at most 16 blocks. ``num_prompt``: tokens that are not
    generated; default all.
    """

    def __init__(self, tokens: list[int], *, seed: int, num_prompt: int | None = None) -> None:
        self.tokens = tokens
        self.state = ExecutorState(len(tokens) if num_prompt is None else num_prompt)
        needed = -(-len(tokens) // BLOCK_SIZE)
        room = max(16, needed)
        self.blocks = [seed * 16 + block for block in Random(seed).sample(range(room), room)][:needed]

    def __len__(self) -> int:
        return len(self.tokens)


Chunk = tuple[Text, int, int]
"""Tokens [start, end) of a text."""


def random_tokens(vocabulary: int, count: int, *, seed: int) -> list[int]:
    return Random(seed).choices(range(vocabulary), k=count)


def random_cuts(texts: Sequence[Text], *, seed: int, largest: int) -> Iterator[list[Chunk]]:
    """Returns steps that compute every text from its first token to its last, in pieces of random sizes."""
    random = Random(seed)
    done = [0] * len(texts)
    while any(start < len(text) for start, text in zip(done, texts, strict=True)):
        chunks = []
        for index, text in enumerate(texts):
            end = min(len(text), done[index] + random.choice((0, 1, 1, 2, 5, largest)))
            if end > done[index]:
                chunks.append((text, done[index], end))
                done[index] = end
        if chunks:
            yield chunks
