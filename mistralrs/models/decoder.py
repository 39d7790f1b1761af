"""The decoder: a list of operations assembled from a spec. The only definition of a forward pass.

It has no branch on a format, a device or an architecture's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

from mistralrs.models.parts import Parts, WeightKey
from mistralrs.models.spec import DecoderSpec
from mistralrs.nn.attention import Attention, Heads, attention
from mistralrs.nn.mlp import mlp
from mistralrs.nn.rope import inverse_frequencies
from mistralrs.ops.backend import Backend, KvCache, KvDtype, KvShape, Norm, Op, Rotary
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.kv_groups import KvGroup
from mistralrs.ops.linear import DeltaShape, Linear
from mistralrs.ops.weight import Weight
from mistralrs.ops.workspace import Sizes, StepArgs


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest step, and the size of the KV cache."""

    max_tokens: int
    max_seqs: int
    max_logits: int
    kv_groups: tuple[KvGroup, ...]
    """The KV groups, in the order of ``DecoderSpec.windows``."""
    block_size: int
    max_blocks: int
    """Blocks of one sequence, at most."""
    adapter_slots: int = 0
    """Adapters that can be in memory at once."""
    kv_dtype: KvDtype = "f16"
    scaling_layers: int = 0
    """Places on the layer axis of scalings; 0: there are none, and no scaling pass."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The ``outlier_threshold`` of projections (``Backend.project``), and the dtype that the KV cache has by default.

    At 0 all activations have two int8 terms, and prefill does the work twice; decode is bound by memory and hardly
    slower. The head, which is computed for few rows, has a threshold of ``HEAD_THRESHOLD`` at most.
    """

    outlier_threshold: float
    kv_dtype: Literal["half", "f16", "f32"] = "half"
    """half: the 16-bit dtype with which the backend is fastest."""


HEAD_THRESHOLD = 1.1
"""The head's highest threshold. With a lower one, more outliers make steps of few tokens slower (docs/log.md)."""
PRECISIONS: dict[str, Precision] = {
    # the threshold up to which outliers cost prompts little (docs/log.md)
    "default": Precision(1.4),
    # twice default's KL
    "fast": Precision(4),
    "high": Precision(0, kv_dtype="f16"),
    "f32": Precision(0, kv_dtype="f32"),
}


@dataclass(frozen=True, slots=True)
class ScalingPass:
    """The layers of a decoder once more, without the head: the same weights, workspace and step arguments, with a KV
    cache of its own under the same block tables."""

    forward: Callable[[], None]
    """Leaves the final states to ``Decoder.hidden``."""
    kv: KvCache


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model that is ready to run: fill ``args``, call ``forward``, read ``logits`` or call ``hidden``."""

    args: StepArgs
    logits: Buffer
    """(max_logits, vocab) float32; the first num_logits rows are those of the last step."""
    hidden: Callable[[int, int], Buffer]
    """``hidden(start, stop)``: float32 (stop - start, hidden), the normed final states of these tokens of the last
    step; valid until the next step."""
    forward: Callable[[], None]
    kv: KvCache
    kv_layers: tuple[tuple[int, ...], ...]
    """The layers of each KV group."""
    linears: Mapping[WeightKey, Linear]
    """The matrices that adapters can act on, with their tables of deltas; empty without adapter slots."""
    scaling_pass: ScalingPass | None = None
    """None if ``Limits.scaling_layers`` is 0."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of the caches of all passes."""
        return self.kv.nbytes + (self.scaling_pass.kv.nbytes if self.scaling_pass else 0)


def sizes_of(spec: DecoderSpec, limits: Limits) -> Sizes:
    return Sizes(
        max_tokens=limits.max_tokens,
        max_seqs=limits.max_seqs,
        max_logits=limits.max_logits,
        max_blocks=limits.max_blocks,
        kv_groups=len(limits.kv_groups),
        hidden=spec.hidden_size,
        q=spec.attention.q_size,
        kv=spec.attention.kv_size,
        ffn=spec.ffn_size,
        vocab=spec.vocab_size,
        rotary=tuple(rope.dim // 2 for rope in spec.attention.ropes),
        adapter_slots=limits.adapter_slots,
        scaling_layers=limits.scaling_layers,
    )


def build_decoder(
    spec: DecoderSpec,
    parts: Parts,
    backend: Backend,
    limits: Limits,
    *,
    precision: Precision,
    scaling_layers: Mapping[WeightKey, int] = MappingProxyType({}),
) -> Decoder:
    """Returns the decoder, with its weights placed and its operations bound.

    ``scaling_layers``: each part's ``Linear.scaling_layer``.
    """
    return _Assembly(spec, parts, backend, limits, precision, scaling_layers).decoder()


class _Assembly:
    """The parts of one decoder while it is put together."""

    def __init__(
        self,
        spec: DecoderSpec,
        parts: Parts,
        backend: Backend,
        limits: Limits,
        precision: Precision,
        scaling_layers: Mapping[WeightKey, int],
    ) -> None:
        sizes = sizes_of(spec, limits)
        self.spec, self.parts, self.backend, self.precision = spec, parts, backend, precision
        self.work, self.args = backend.workspace(sizes), backend.step_args(sizes)
        self.slots, self.adaptable = limits.adapter_slots, dict[WeightKey, Linear]()
        self.scaling_layers = scaling_layers
        self.groups = [spec.windows.index(layer.window) for layer in spec.layers]
        shape = KvShape(
            blocks=tuple(limits.kv_groups[group].num_blocks for group in self.groups),
            kv_heads=spec.attention.kv_heads,
            head_dim=spec.attention.head_dim,
            block_size=limits.block_size,
            dtype=limits.kv_dtype,
        )
        self.kvs = [backend.kv_cache(shape) for _ in range(2 if limits.scaling_layers else 1)]
        """One for each pass."""
        tables = zip(spec.attention.ropes, self.work.rotary, strict=True)
        self.rotaries = [Rotary(backend.vector(inverse_frequencies(rope)), table, rope.scale) for rope, table in tables]

    def decoder(self) -> Decoder:
        spec, backend, work = self.spec, self.backend, self.work
        [weight] = self.parts.linears(["embed_tokens"])
        embedding = self._linear(WeightKey("embed_tokens"), weight)
        embed = backend.embed(embedding, work, rotaries=self.rotaries, scale=spec.embedding_multiplier)
        passes: list[list[Op]] = [[embed] for _ in self.kvs]
        for layer in range(len(spec.layers)):
            for ops, of_layer in zip(passes, self._layer(layer), strict=True):
                ops += of_layer
        head = self._linear(WeightKey("lm_head"), weight) if spec.tied_head else self._linears(["lm_head"])[0]
        norm = self._norm("norm")
        passes[0].append(
            backend.project(
                [head],
                work.x,
                [work.logits],
                norm=norm,
                outlier_threshold=min(self.precision.outlier_threshold, HEAD_THRESHOLD),
                logits_only=True,
                scale=spec.logits_multiplier,
                softcap=spec.logits_softcap,
            )
        )

        def hidden(start: int, stop: int) -> Buffer:
            normed = work.projected.rows(start, stop)  # between two steps nothing else is in there
            backend.normalize(work.x.rows(start, stop), normed, norm=norm)
            return normed

        kv_layers = tuple(
            tuple(layer for layer, of in enumerate(self.groups) if of == group) for group in range(len(spec.windows))
        )
        programs = [backend.program(ops, self.args) for ops in passes]
        scaling = ScalingPass(programs[1], self.kvs[1]) if len(passes) > 1 else None
        return Decoder(
            self.args, work.logits, hidden, programs[0], self.kvs[0], kv_layers, self.adaptable, scaling_pass=scaling
        )

    def _linear(self, key: WeightKey, weight: Weight) -> Linear:
        """The matrix of a part, with a table of deltas if adapters can act on it."""
        if not self.slots:
            return Linear(weight)
        shape = DeltaShape(weight.rows, weight.columns, lookup=key.part == "embed_tokens")
        table = self.backend.delta_table(self.slots, shape)
        self.adaptable[key] = Linear(weight, table, self.scaling_layers.get(key, -1))
        return self.adaptable[key]

    def _linears(self, names: Sequence[str], layer: int | None = None) -> list[Linear]:
        weights = self.parts.linears(names, layer=layer)
        return [self._linear(WeightKey(name, layer), weight) for name, weight in zip(names, weights, strict=True)]

    def _expert_linears(self, name: str, layer: int) -> list[Linear]:
        weights = self.parts.experts(name, layer=layer)
        return [self._linear(WeightKey(name, layer, expert), weight) for expert, weight in enumerate(weights)]

    def _layer(self, layer: int) -> list[list[Op]]:
        """A layer's operations in each pass, which differ in the KV cache alone."""
        attentions = self._attentions(layer)
        ffn = self._experts(layer) if self.spec.moe else self._mlp(layer)
        if self.spec.parallel:  # a parallel feed-forward reads x before attention is added to it
            return [[*attention.read, ffn[0], *attention.write, *ffn[1:]] for attention in attentions]
        return [[*attention.read, *attention.write, *ffn] for attention in attentions]

    def _attentions(self, layer: int) -> list[Attention]:
        spec, kind = self.spec.attention, self.spec.layers[layer]
        shape = Heads(
            heads=spec.num_heads,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            scale=spec.head_dim**-0.5 if spec.scale is None else spec.scale,
            window=kind.window,
            softcap=spec.softcap,
            full_norms=spec.qk_norm == "full",
            temperature=spec.temperature,
        )
        attend = partial(
            attention,
            self.backend,
            self.work,
            shape=shape,
            layer=layer,
            group=self.groups[layer],
            norm=self._norm_before("attention_norm", layer),
            qkv=self._linears(["q_proj", "k_proj", "v_proj"], layer),
            o_proj=self._linears(["o_proj"], layer)[0],
            rotary=None if kind.rope is None else self.rotaries[kind.rope],
            q_norm=self._qk_norm("q_norm", layer),
            k_norm=self._qk_norm("k_norm", layer),
            post_norm=self._norm_after("post_attention_norm", layer),
            residual_multiplier=self.spec.residual_multiplier,
            outlier_threshold=self.precision.outlier_threshold,
        )
        return [attend(kv=kv) for kv in self.kvs]

    def _mlp(self, layer: int) -> list[Op]:
        spec = self.spec
        return mlp(
            self.backend,
            self.work,
            norm=self._norm_before("attention_norm" if spec.parallel else "ffn_norm", layer),
            inputs=self._linears(["gate_proj", "up_proj"] if spec.gated else ["up_proj"], layer),
            down=self._linears(["down_proj"], layer)[0],
            activation=spec.activation,
            post_norm=self._norm_after("post_ffn_norm", layer),
            residual_multiplier=spec.residual_multiplier,
            outlier_threshold=self.precision.outlier_threshold,
        )

    def _experts(self, layer: int) -> list[Op]:
        moe = self.spec.moe
        assert moe is not None
        return [
            self.backend.moe(
                self.work,
                norm=self._norm("ffn_norm", layer),
                router=self._linears(["router"], layer)[0],
                gate=self._expert_linears("expert_gate_proj", layer),
                up=self._expert_linears("expert_up_proj", layer),
                down=self._expert_linears("expert_down_proj", layer),
                used=moe.experts_used,
                activation=self.spec.activation,
                outlier_threshold=self.precision.outlier_threshold,
                normalize_weights=moe.normalize_weights,
                scale=self.spec.residual_multiplier,
            )
        ]

    def _norm(self, name: str, layer: int | None = None) -> Norm:
        weight, bias = self.parts.norm(name, layer=layer)
        return Norm(weight, self.spec.norm.eps, self.spec.norm.kind, bias)

    def _norm_before(self, name: str, layer: int) -> Norm | None:
        return self._norm(name, layer) if self.spec.norm.before else None

    def _norm_after(self, name: str, layer: int) -> Norm | None:
        return self._norm(name, layer) if self.spec.norm.after else None

    def _qk_norm(self, name: str, layer: int) -> Norm | None:
        if self.spec.attention.qk_norm == "none":
            return None
        return Norm(self.parts.norm(name, layer=layer)[0], self.spec.norm.eps)
