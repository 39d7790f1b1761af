"""Attention over the paged cache: kernels against the reference implementation, and bitwise laws of the kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from mistralrs_kernels import cpu

from mistralrs.ops.arena import Arena, buffer
from mistralrs.ops.backend import Backend, KvDtype, KvShape, Norm, Rotary, Temperature
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.native_memory import PackedKv
from mistralrs.ops.reference_kv import ReferenceKv
from mistralrs.ops.workspace import Sizes, StepArgs, Workspace
from tests.buffers import tensor_of
from tests.ops.harness import Normalization, for_every_isa, native, normed, random_values, reference
from tests.tolerances import ATTENTION, BF16_ATTENTION, Q8_ATTENTION

pytestmark = pytest.mark.native

BLOCK = 16
HEADS = ((1, 1), (3, 1), (4, 2), (9, 3), (40, 1))
HEAD_DIMS = (16, 24, 64, 80, 128)
DTYPES: tuple[KvDtype, ...] = ("f16", "bf16", "q8_0", "f32")
LENGTHS = (1, 15, 16, 17, 33, 63, 64, 65, 130, 511, 512, 513, 1030)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    rotary_half: int = 0
    """0: nothing is rotated."""
    window: int = 0
    softcap: float = 0.0
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    full_norms: bool = False
    temperature: Temperature | None = None
    dtype: KvDtype = "f16"
    """The type in which keys and values are kept."""
    group: int = 0
    """The index of the KV group under test; the other groups' slots and tables are wrong for it."""


@dataclass(frozen=True, slots=True)
class Text:
    """A sequence: the queries, keys and values of its tokens, and its block table."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    table: list[int]

    @property
    def length(self) -> int:
        return len(self.q)


Chunk = tuple[Text, int, int]
"""Tokens [start, end) of a text."""


def make_texts(shape: Shape, lengths: Sequence[int], *, seed: int) -> list[Text]:
    """Their blocks lie scattered over the cache."""
    counts = [-(-length // BLOCK) for length in lengths]
    blocks = Random(seed).sample(range(sum(counts) + 3), sum(counts))
    texts = []
    for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        values = random_values(length, q + 2 * kv, seed=seed + 1000 * index)
        ask, found, said = (part.contiguous() for part in values.split([q, kv, kv], dim=1))
        texts.append(Text(ask, found, said, blocks[:count]))
        del blocks[:count]
    return texts


class Cache:
    """A backend's attention with a cache of its own; starts full of what others left there."""

    def __init__(self, backend: Backend, shape: Shape, texts: Sequence[Text]) -> None:
        total = sum(text.length for text in texts)
        blocks = 1 + max(block for text in texts for block in text.table)
        self.sizes = Sizes(
            max_tokens=total, max_seqs=len(texts), max_logits=1, max_blocks=max(len(text.table) for text in texts),
            hidden=1, q=shape.heads * shape.head_dim, kv=shape.kv_heads * shape.head_dim, ffn=1, vocab=1,
            rotary=(max(1, shape.rotary_half),), kv_groups=shape.group + 1,
        )  # fmt: skip
        self.backend, self.shape = backend, shape
        self.work, self.args = Workspace(self.sizes), StepArgs(self.sizes)
        self.kv = backend.kv_cache(
            KvShape(
                blocks=(blocks,),
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                block_size=BLOCK,
                dtype=shape.dtype,
            )
        )
        self.leave_rubbish(range(blocks))
        half = shape.rotary_half
        arena = Arena(8192)
        op = backend.attend(
            self.work,
            self.kv,
            layer=0,
            group=shape.group,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            scale=shape.head_dim**-0.5,
            rotary=Rotary(buffer(arena, half), self.work.rotary[0]) if half else None,
            q_norm=self._norm(shape.q_norm, arena),
            k_norm=self._norm(shape.k_norm, arena),
            full_norms=shape.full_norms,
            window=shape.window,
            softcap=shape.softcap,
            temperature=shape.temperature,
        )
        self._run = backend.program([op], self.args)

    def _norm(self, weight: torch.Tensor | None, arena: Arena) -> Norm | None:
        return None if weight is None else Normalization(weight=weight).bind(arena)

    def leave_rubbish(self, blocks: Iterable[int]) -> None:
        """NaN in every place: what is not written by the test must not be read."""
        kv = self.kv
        for block in blocks:
            if isinstance(kv, ReferenceKv):
                for stored in (kv.k[0], kv.v[0]):
                    if stored.dtype != "q8_0":
                        stored.values[block] = float("nan")
                    stored.scales[block] = float("nan")
            else:
                assert isinstance(kv, PackedKv)
                kv.layers[0].bytes[block * kv.block_bytes : (block + 1) * kv.block_bytes] = b"\xff" * kv.block_bytes

    def step(self, *chunks: Chunk) -> list[torch.Tensor]:
        """One step; (tokens, heads * head_dim) for each chunk."""
        starts = [0]
        for _, start, end in chunks:
            starts.append(starts[-1] + end - start)
        positions = [p for _, start, end in chunks for p in range(start, end)]
        work, count = self.work, starts[-1]
        for target, name in ((work.q, "q"), (work.k, "k"), (work.v, "v")):
            tensor_of(target)[:count] = torch.cat([getattr(text, name)[start:end] for text, start, end in chunks])
        self._rotary(positions)
        slots = [t.table[p // BLOCK] * BLOCK + p % BLOCK for t, start, end in chunks for p in range(start, end)]
        astray = self.shape.group
        self.args.set(
            tokens=[0] * count,
            positions=positions,
            slot_mapping=[*[[0] * count] * astray, slots],
            query_start_loc=starts,
            seq_lens=[end for _, _, end in chunks],
            block_tables=[
                *[[[0] * len(text.table) for text, _, _ in chunks]] * astray,
                [t.table for t, _, _ in chunks],
            ],
            logits_indices=[],
        )
        self._run()
        return list(tensor_of(work.attended)[:count].clone().split([end - start for _, start, end in chunks]))

    def _rotary(self, positions: list[int]) -> None:
        half = self.shape.rotary_half
        if half:
            angles = torch.tensor(positions)[:, None] * 10000.0 ** (-torch.arange(half) / half)
            tensor_of(self.work.rotary[0])[: len(positions)] = torch.stack([angles.cos(), angles.sin()], dim=1)


def whole(backend: Backend, shape: Shape, text: Text) -> torch.Tensor:
    """The text alone, in one step."""
    return Cache(backend, shape, [text]).step((text, 0, text.length))[0]


def assert_close(shape: Shape, result: torch.Tensor, expected: torch.Tensor, text: Text) -> None:
    lengths = [x.unflatten(-1, (-1, shape.head_dim)).norm(dim=-1).max() for x in (text.q, text.k)]
    largest_score = lengths[0] * lengths[1] * shape.head_dim**-0.5
    tolerance = ATTENTION * (1 + largest_score) + {"bf16": BF16_ATTENTION, "q8_0": Q8_ATTENTION}.get(shape.dtype, 0)
    worst = (result - expected).abs().max() / (tolerance * text.v.abs().max())
    assert worst <= 1, f"{worst:.2f} times the tolerance"


@for_every_isa
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_kernel_equals_reference(isa: str, heads: int, kv_heads: int, head_dim: int) -> None:
    """Several sequences in one step, whole; then one more token of each."""
    random = Random(f"{heads} {head_dim}")
    half = random.choice((0, head_dim // 8, head_dim // 2))
    dtype = random.choice(DTYPES if head_dim % 16 == 0 else (*DTYPES[:2], "f32"))
    shape = Shape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rotary_half=half, dtype=dtype)
    texts = make_texts(shape, random.sample(LENGTHS[:9], 3), seed=head_dim)
    kernel, plain = Cache(native(isa), shape, texts), Cache(reference(), shape, texts)
    for chunks in (
        [(text, 0, max(1, text.length - 1)) for text in texts],
        [(t, t.length - 1, t.length) for t in texts],
    ):
        for result, expected, text in zip(kernel.step(*chunks), plain.step(*chunks), texts, strict=True):
            assert_close(shape, result, expected, text)


@for_every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(isa: str, length: int, dtype: KvDtype) -> None:
    """The last tokens of a sequence whose other tokens came before."""
    shape = Shape(heads=3, kv_heads=1, head_dim=32, rotary_half=16, dtype=dtype)
    [text] = make_texts(shape, [length], seed=length)
    kernel, plain = Cache(native(isa), shape, [text]), Cache(reference(), shape, [text])
    cut = max(0, length - 3)
    for start, end in ((0, cut), (cut, length)):
        if start < end:
            assert_close(shape, kernel.step((text, start, end))[0], plain.step((text, start, end))[0], text)


@for_every_isa
@pytest.mark.parametrize("window", [1, 5, 16, 64, 600])
def test_windows(isa: str, window: int) -> None:
    shape = Shape(heads=4, kv_heads=2, head_dim=16, rotary_half=8, window=window)
    [text] = make_texts(shape, [700], seed=window)
    assert_close(shape, whole(native(isa), shape, text), whole(reference(), shape, text), text)


@for_every_isa
@pytest.mark.parametrize("window", [1, 5, 16, 17, 40, 64, 600])
@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "reference"])
def test_blocks_that_no_window_reaches_are_not_read(isa: str, window: int, plain: bool) -> None:
    """Before each step all that it cannot see is taken away: the blocks hold NaN, the table names another or none."""
    shape = Shape(heads=4, kv_heads=2, head_dim=24, rotary_half=8, window=window)
    backend = reference() if plain else native(isa)
    [text] = make_texts(shape, [700], seed=window)
    expected = whole(backend, shape, text)
    cache, random, start = Cache(backend, shape, [text]), Random(window), 0
    while start < text.length:
        end = min(text.length, start + random.choice((1, 1, 2, 7, 33, 100)))
        gone = max(0, start + 1 - window) // BLOCK
        cache.leave_rubbish(text.table[:gone])
        table = [10**9 if plain else text.table[0]] * gone + text.table[gone:]
        [result] = cache.step((replace(text, table=table), start, end))
        if plain:
            assert_close(shape, result, expected[start:end], text)
        else:
            assert torch.equal(result, expected[start:end])
        start = end
    assert window > 100 or gone > 30


@for_every_isa
@pytest.mark.parametrize("window", [0, 20])
def test_each_group_has_its_own_slots_and_tables(isa: str, window: int) -> None:
    shape = Shape(heads=4, kv_heads=2, head_dim=16, window=window)
    texts = make_texts(shape, [70, 33], seed=window)
    expected = [whole(native(isa), shape, text) for text in texts]
    for backend in (native(isa), reference()):
        cache = Cache(backend, replace(shape, group=2), texts)
        first = cache.step(*((text, 0, text.length - 5) for text in texts))
        second = cache.step(*((text, text.length - 5, text.length) for text in texts))
        for text, before, after, want in zip(texts, first, second, expected, strict=True):
            assert_close(shape, torch.cat([before, after]), want, text)


@for_every_isa
def test_soft_cap(isa: str) -> None:
    shape = Shape(heads=4, kv_heads=2, head_dim=16, softcap=5.0)
    [text] = make_texts(shape, [70], seed=1)
    result = whole(native(isa), shape, text)
    assert_close(shape, result, whole(reference(), shape, text), text)
    uncapped = Shape(heads=4, kv_heads=2, head_dim=16)
    assert (result - whole(native(isa), uncapped, text)).abs().max() > 0.01


@for_every_isa
def test_head_norms_are_norms_of_what_comes_in(isa: str) -> None:
    """With norms of q and k: exactly what q and k that were normed before give without."""
    weights = [1 + random_values(32, seed=seed) / 8 for seed in (1, 2)]
    shape = Shape(heads=4, kv_heads=2, head_dim=32, rotary_half=16, q_norm=weights[0], k_norm=weights[1])
    [text] = make_texts(shape, [70], seed=1)
    q, k = (
        normed(native(isa), values.reshape(-1, 32), Normalization(weight=weight)).view_as(values)
        for values, weight in zip((text.q, text.k), weights, strict=True)
    )
    plain = Shape(heads=4, kv_heads=2, head_dim=32, rotary_half=16)
    before = Text(q, k, text.v, text.table)
    assert torch.equal(whole(native(isa), shape, text), whole(native(isa), plain, before))
    assert_close(plain, whole(native(isa), plain, before), whole(reference(), plain, before), text)


@for_every_isa
@pytest.mark.parametrize("head_dim", [24, 32])
def test_full_norms_are_norms_of_all_heads(isa: str, head_dim: int) -> None:
    """With norms over all heads of q and k: exactly what q and k that were normed before give without."""
    plain = Shape(heads=6, kv_heads=2, head_dim=head_dim, rotary_half=8)
    weights = [1 + random_values(count * head_dim, seed=count) / 8 for count in (6, 2)]
    shape = replace(plain, q_norm=weights[0], k_norm=weights[1], full_norms=True)
    [text] = make_texts(shape, [70], seed=1)
    q, k = (
        normed(native(isa), values, Normalization(weight=weight))
        for values, weight in zip((text.q, text.k), weights, strict=True)
    )
    before = Text(q, k, text.v, text.table)
    assert torch.equal(whole(native(isa), shape, text), whole(native(isa), plain, before))
    assert_close(shape, whole(native(isa), shape, text), whole(reference(), shape, text), before)


@for_every_isa
def test_temperature_grows_with_the_position(isa: str) -> None:
    """Queries are those that were multiplied before; the first period is left as it is."""
    plain = Shape(heads=4, kv_heads=2, head_dim=32)
    shape = replace(plain, temperature=Temperature(beta=0.5, period=16))
    [text] = make_texts(shape, [70], seed=1)
    factors = 1 + 0.5 * torch.log(1 + torch.arange(70) // 16)
    before = Text(text.q * factors[:, None], text.k, text.v, text.table)
    result = whole(native(isa), shape, text)
    assert_close(plain, result, whole(native(isa), plain, before), before)
    assert_close(plain, result, whole(reference(), shape, text), before)
    without = whole(native(isa), plain, text)
    assert torch.equal(result[:16], without[:16])
    assert (result[16:] - without[16:]).abs().max() > 0.01


@for_every_isa
@pytest.mark.parametrize(
    ("window", "dtype"), [(0, "f16"), (40, "f16"), (0, "bf16"), (40, "bf16"), (0, "q8_0"), (40, "q8_0"), (0, "f32")]
)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_however_the_prompt_is_cut(isa: str, heads: int, kv_heads: int, window: int, dtype: KvDtype) -> None:
    """Bit for bit: whole, token by token, and in chunks beside other sequences."""
    head_dim = 48 if dtype == "q8_0" else 24
    shape = Shape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rotary_half=6, window=window, dtype=dtype)
    texts = make_texts(shape, [70, 530, 9], seed=heads)
    expected = [whole(native(isa), shape, text) for text in texts]
    together = Cache(native(isa), shape, texts)
    assert all(map(torch.equal, together.step(*((text, 0, text.length) for text in texts)), expected))
    apart = Cache(native(isa), shape, texts)
    done = [0] * len(texts)
    random = Random(heads)
    while any(start < text.length for start, text in zip(done, texts, strict=True)):
        chunks, wanted = [], []
        for index, text in enumerate(texts):
            end = min(text.length, done[index] + random.choice((0, 1, 1, 2, 7, 16, 33, 100)))
            if end > done[index]:
                chunks.append((text, done[index], end))
                wanted.append(expected[index][done[index] : end])
                done[index] = end
        if chunks:
            assert all(map(torch.equal, apart.step(*chunks), wanted))


@for_every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_head(isa: str, dtype: KvDtype) -> None:
    """Head sizes, windows and soft caps together: prompts in two steps, then a token of each."""
    random = Random(f"heads {dtype}")
    head_dims = (16, 32, 48, 80, 128) if dtype == "q8_0" else (16, 24, 33, 80, 128)
    for head_dim, window, softcap in itertools.product(head_dims, (0, 100), (0.0, 20.0)):
        heads, kv_heads = random.choice(HEADS[:4])
        half = random.choice((0, head_dim // 2))
        shape = Shape(
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, rotary_half=half,
            window=window, softcap=softcap, dtype=dtype,
        )  # fmt: skip
        texts = make_texts(shape, [random.randint(140, 180), random.randint(2, 40)], seed=head_dim + window)
        kernel, plain = Cache(native(isa), shape, texts), Cache(reference(), shape, texts)
        cuts = [sorted((0, random.randint(1, text.length - 1), text.length - 1, text.length)) for text in texts]
        for index in range(3):
            chunks = [(text, *cut[index : index + 2]) for text, cut in zip(texts, cuts, strict=True)]
            chunks = [(text, start, end) for text, start, end in chunks if start < end]
            for result, expected, chunk in zip(kernel.step(*chunks), plain.step(*chunks), chunks, strict=True):
                assert_close(shape, result, expected, chunk[0])


@for_every_isa
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(9, 3, 800), (12, 1, 0)])
def test_threads_that_share_a_sequence_do_not_matter(
    isa: str, heads: int, kv_heads: int, window: int, dtype: KvDtype
) -> None:
    """Bit for bit: a token and some tokens far behind in a sequence, alone and beside a short one."""
    head_dim = 48 if dtype == "q8_0" else 24
    shape = Shape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rotary_half=6, window=window, dtype=dtype)
    texts = make_texts(shape, [1160, 20], seed=heads)
    results = []
    for threads in (1, 3):
        cache = Cache(native(isa, threads=threads), shape, texts)
        long, short = texts
        cache.step((long, 0, 1150), (short, 0, 15))
        steps = [cache.step((long, 1150, 1151)), cache.step((long, 1151, 1155), (short, 15, 16))]
        results.append(torch.cat([part for step in steps for part in step]))
        if threads == 1:
            whole_text = whole(native(isa), shape, long)
            assert torch.equal(torch.cat([steps[0][0], steps[1][0]]), whole_text[1150:1155])
    assert torch.equal(*results)


@for_every_isa
def test_a_long_sequence_is_shared_by_threads(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what one thread computes when there is no room for the results of chunks."""
    shape = Shape(heads=2, kv_heads=1, head_dim=16)
    [text] = make_texts(shape, [1600], seed=7)
    results = []
    for room in (True, False):
        if not room:
            monkeypatch.setattr(cpu.load(), "mrs_attend_scratch", lambda *_: 0)
        backend = NativeBackend(threads=2, isa=isa)
        cache = Cache(backend, shape, [text])
        cache.step((text, 0, 1599))
        results += cache.step((text, 1599, 1600))
        assert backend._scratch is not None or not room
        assert any(backend._scratch.bytes[:4096] if backend._scratch else b"") == room
    assert torch.equal(*results)


@for_every_isa
def test_a_pair_without_its_second_key_is_not_read(isa: str) -> None:
    """A block that others left full of NaN, filled token by token, by pairs that two threads write."""
    shape = Shape(heads=4, kv_heads=2, head_dim=16, dtype="bf16")
    [text] = make_texts(shape, [90], seed=4)
    expected = whole(native(isa), shape, text)
    cache = Cache(native(isa), shape, [text])
    for start, end in itertools.pairwise((0, 1, 2, 5, 6, 21, 38, 71, 90)):
        assert torch.equal(cache.step((text, start, end))[0], expected[start:end])


@for_every_isa
def test_threads_do_not_matter(isa: str) -> None:
    shape = Shape(heads=9, kv_heads=3, head_dim=64, rotary_half=32)
    texts = make_texts(shape, [600, 40, 3], seed=3)
    chunks = [(text, 0, text.length) for text in texts]
    first, *others = [Cache(native(isa, threads=threads), shape, texts).step(*chunks) for threads in (1, 2, 3)]
    assert all(all(map(torch.equal, first, other)) for other in others)


@for_every_isa
def test_where_the_blocks_lie_does_not_matter(isa: str) -> None:
    shape = Shape(heads=4, kv_heads=2, head_dim=64, rotary_half=32)
    [text] = make_texts(shape, [100], seed=5)
    moved = Text(text.q, text.k, text.v, [2 * block + 1 for block in reversed(text.table)])
    assert torch.equal(whole(native(isa), shape, text), whole(native(isa), shape, moved))
