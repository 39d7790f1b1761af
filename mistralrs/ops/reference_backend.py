"""The reference implementation of the backend in plain torch: the kernels must equal it, and it runs where there are
none.

``reference_ops`` has the operations. Each has the arguments of the native one and writes the same buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from mistralrs.errors import LoadError
from mistralrs.ops import reference_ops
from mistralrs.ops.backend import Activation, Epilogue, KvShape, Norm, Op, Rotary, Temperature
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.host_memory import HostMemory
from mistralrs.ops.linear import DeltaShape, Linear
from mistralrs.ops.memory import available_bytes
from mistralrs.ops.reference_deltas import ReferenceDeltaTable
from mistralrs.ops.reference_kv import ReferenceKv
from mistralrs.ops.reference_memory import ReferenceWeight
from mistralrs.ops.weight import Matrix
from mistralrs.ops.workspace import StepArgs, Workspace
from mistralrs.quant import scale_search
from mistralrs.quant.types import QuantType


class ReferenceBackend(HostMemory):
    """Everything in torch. Weights stay decoded when they are small beside the memory that is free."""

    def __init__(self, *, threads: int | None = None, isa: str | None = None) -> None:
        super().__init__()
        self.name = "cpu torch"
        self.batch_invariant = False
        self.half_kv: Literal["f16", "bf16"] = "f16"
        self.threads = self.torch_threads = threads or torch.get_num_threads()
        self._keep_dense = False

    @property
    def results(self) -> str:
        return f"{self.name} {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"

    def placed_bytes(self, matrix: Matrix) -> int:
        if matrix.in_place:
            return 8 * matrix.rows if matrix.order else 0
        return matrix.rows * matrix.columns * 4

    def reserve(self, nbytes: int) -> None:
        self._keep_dense = nbytes < available_bytes() // 2

    def row_sampler(self) -> None:
        return None

    def packing(self) -> None:
        return None

    def place(self, matrix: Matrix) -> ReferenceWeight:
        return ReferenceWeight(matrix, keep_dense=self._keep_dense and not matrix.in_place)

    def quantize(self, name: str, target: QuantType, values: memoryview) -> memoryview:
        assert values.shape is not None
        weights = torch.frombuffer(values, dtype=torch.float32).view(values.shape)
        try:
            blocks = scale_search.quantize_blocks(target, weights)
        except ValueError as error:
            raise LoadError(f"{name} cannot be quantized to {target.name}: {error}") from error
        return blocks.contiguous().numpy().data.cast("B")

    def kv_cache(self, shape: KvShape) -> ReferenceKv:
        return ReferenceKv(shape)

    def delta_table(self, slots: int, shape: DeltaShape) -> ReferenceDeltaTable:
        return ReferenceDeltaTable(slots, shape)

    def embed(self, linear: Linear, work: Workspace, *, rotaries: Sequence[Rotary], scale: float = 1.0) -> Op:
        return reference_ops.Embed(linear, work, tuple(rotaries), scale)

    def project(
        self,
        linears: Sequence[Linear],
        x: Buffer,
        outs: Sequence[Buffer],
        *,
        norm: Norm | None = None,
        epilogue: Epilogue = "store",
        activation: Activation = "silu",
        outlier_threshold: float = math.inf,
        logits_only: bool = False,
        softcap: float = 0.0,
        scale: float = 1.0,
    ) -> Op:
        return reference_ops.Project(
            tuple(linears), x, tuple(outs), norm, epilogue, activation, outlier_threshold, logits_only, softcap, scale
        )

    def attend(
        self,
        work: Workspace,
        kv: object,
        *,
        layer: int,
        group: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        rotary: Rotary | None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        full_norms: bool = False,
        window: int = 0,
        softcap: float = 0.0,
        temperature: Temperature | None = None,
    ) -> Op:
        assert isinstance(kv, ReferenceKv)
        return reference_ops.Attend(
            work=work,
            k=kv.k[layer],
            v=kv.v[layer],
            group=group,
            heads=heads,
            kv_heads=kv_heads,
            scale=scale,
            rotary=rotary,
            q_norm=q_norm,
            k_norm=k_norm,
            full_norms=full_norms,
            window=window,
            softcap=softcap,
            temperature=temperature,
        )

    def normalize(self, x: Buffer, out: Buffer, *, norm: Norm) -> None:
        reference_ops.normalize_rows(x, out, norm=norm)

    def add_norm(self, y: Buffer, x: Buffer, norm: Norm) -> Op:
        return reference_ops.AddNorm(y, x, norm)

    def moe(
        self,
        work: Workspace,
        *,
        norm: Norm,
        router: Linear,
        gate: Sequence[Linear],
        up: Sequence[Linear],
        down: Sequence[Linear],
        used: int,
        activation: Activation,
        outlier_threshold: float,
        normalize_weights: bool = True,
        scale: float = 1.0,
    ) -> Op:
        experts = list(zip(gate, up, down, strict=True))
        return reference_ops.Moe(
            work=work,
            norm=norm,
            router=router,
            experts=experts,
            used=used,
            activation=activation,
            outlier_threshold=outlier_threshold,
            normalize_weights=normalize_weights,
            scale=scale,
        )

    def program(self, ops: Sequence[Op], args: StepArgs) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            for op in ops:
                if args.cancel_flag.value:
                    return
                op(args)

        return run
