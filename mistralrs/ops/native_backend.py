"""The CPU kernels as a backend: binds ``mistralrs_kernels.cpu`` to weights and buffers.

Imports neither torch nor numpy.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mistralrs_kernels import cpu

from mistralrs.errors import LoadError
from mistralrs.ops.arena import Arena
from mistralrs.ops.backend import Activation, BackendUnavailable, Epilogue, KvShape, Norm, Op, Rotary, Temperature
from mistralrs.ops.buffer import Buffer, Span
from mistralrs.ops.host_memory import HostMemory
from mistralrs.ops.linear import DeltaShape, Linear
from mistralrs.ops.native_checks import (
    check_attend,
    check_embed,
    check_matrix,
    check_moe,
    check_norm,
    check_project,
    check_stored,
)
from mistralrs.ops.native_deltas import DeltaScratch, NativeDeltaTable, linear_struct, linear_structs
from mistralrs.ops.native_memory import PackedKv, PackedWeight, packed_weight
from mistralrs.ops.native_packing import NativePacking, PackOne
from mistralrs.ops.native_program import NativeOp, NativeProgram, Pool
from mistralrs.ops.native_row_sampler import NativeRowSampler
from mistralrs.ops.weight import Matrix
from mistralrs.ops.workspace import StepArgs, Workspace
from mistralrs.quant.types import QuantType

_EPILOGUE = {"store": 0, "add": 1, "gated": 2, "activate": 3}
_ACTIVATION = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
_NORM = {"rms": 1, "layer": 2}


def physical_cores() -> int:
    """Cores that this process may run on, counting two hardware threads of one core once."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for index in cpus:
        topology = Path(f"/sys/devices/system/cpu/cpu{index}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            cores.add((str(index), ""))
    return max(1, len(cores))


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the kernels were built for and this processor has, the best first; none without the
    kernels.
    """
    try:
        return tuple(cpu.tables())
    except cpu.KernelError:
        return ()


class NativeBackend(HostMemory):
    """Weights in packed panels, cache in 16 bits, int8 products with one scale for each 32 activations."""

    def __init__(self, *, threads: int | None = None, isa: str | None = None) -> None:
        super().__init__()
        try:
            tables = cpu.tables(by_name=isa in cpu.BY_NAME)
        except cpu.KernelError as error:
            raise BackendUnavailable(f"the compiled kernels cannot be used: {error}") from error
        if isa is not None and isa not in tables:
            raise BackendUnavailable(f"this processor and build have {', '.join(tables)}")
        self.isa = isa or next(iter(tables))
        self.name = f"cpu {self.isa}"
        self.threads = threads or physical_cores()
        self.torch_threads = 1  # two sets of threads would take the cores from each other
        self.batch_invariant = True
        self.half_kv: Literal["f16", "bf16"] = "bf16" if self.isa in ("avx512bf16", "amx_int8") else "f16"
        self._table = tables[self.isa]
        self._pool = Pool(self.threads)
        self._arena: Arena | None = None
        self._scratch: Span | None = None
        self._deltas = DeltaScratch()

    @property
    def results(self) -> str:
        return f"{self.name} {cpu.digest()}"

    def placed_bytes(self, matrix: Matrix) -> int:
        check_matrix(matrix.name, matrix.type, rows=matrix.rows, columns=matrix.columns)
        bias = 4 * matrix.rows if matrix.bias else 0
        if matrix.in_place:
            return bias + (4 * matrix.rows if matrix.order else 0) + 128
        return int(cpu.load().mrs_packed_bytes(matrix.type.ggml_id, matrix.rows, matrix.columns)) + bias + 128

    def reserve(self, nbytes: int) -> None:
        self._arena = Arena(nbytes, huge_pages=True)

    def _take(self, nbytes: int) -> Span:
        arena = self._arena
        if arena is None or arena.left < nbytes:
            arena = Arena(nbytes)
        return arena.take(nbytes)

    def packing(self) -> NativePacking:
        return NativePacking(self.threads, self._placed)

    def place(self, matrix: Matrix) -> PackedWeight:
        return self._placed(matrix, self._pack)

    def _placed(self, matrix: Matrix, pack: PackOne) -> PackedWeight:
        check_stored(matrix)
        packed_bytes = self.placed_bytes(matrix) - 128 - (4 * matrix.rows if matrix.bias else 0)
        source = ctypes.addressof(ctypes.c_char.from_buffer(matrix.data)) if len(matrix.data) else 0
        span = Span(source, matrix.data) if matrix.in_place else self._take(packed_bytes)
        bias = None
        if matrix.bias is not None:
            bias = Buffer(self._take(4 * matrix.rows), (matrix.rows,))
            bias.values[:] = matrix.bias
        if not matrix.in_place:
            pack(matrix, source, span.address)
        return PackedWeight(matrix, span, bias, self._table)

    def _pack(self, matrix: Matrix, source: int, target: int) -> None:
        order = ctypes.c_void_p(matrix.order.buffer_info()[0]) if matrix.order is not None else None
        status = cpu.load().mrs_pack(
            matrix.type.ggml_id,
            source,
            matrix.type.row_bytes(matrix.columns),
            matrix.rows,
            matrix.columns,
            order,
            target,
            self._pool.pointer,
        )
        if status:
            raise LoadError(f"{matrix.name}: the kernels cannot pack {matrix.type.name}")

    def quantize(self, name: str, target: QuantType, values: memoryview) -> memoryview:
        assert values.shape is not None
        rows, columns = values.shape
        nbytes = rows * target.row_bytes(columns)
        out = Arena(nbytes).take(nbytes)
        source = ctypes.addressof(ctypes.c_char.from_buffer(values))
        arguments = (target.ggml_id, source, rows, columns, out.address, self._pool.pointer)
        if cpu.load().mrs_quantize(*arguments):
            raise LoadError(f"{name} cannot be quantized to {target.name}: a weight is not finite, or too large")
        return out.bytes

    def kv_cache(self, shape: KvShape) -> PackedKv:
        if shape.block_size != 16:
            raise ValueError("the kernels' cache blocks hold 16 tokens")
        return PackedKv(shape)

    def delta_table(self, slots: int, shape: DeltaShape) -> NativeDeltaTable:
        return NativeDeltaTable(slots, shape, self._deltas)

    def _scratch_for(self, tokens: int, columns: int) -> Span:
        return self._scratch_bytes(cpu.load().mrs_project_scratch(tokens, columns))

    def _scratch_bytes(self, need: int) -> Span:
        """One scratch for all operations: only one runs at a time."""
        if self._scratch is None or len(self._scratch.bytes) < need:
            self._scratch = Arena(need, huge_pages=True).take(need)
        return self._scratch

    def embed(self, linear: Linear, work: Workspace, *, rotaries: Sequence[Rotary], scale: float = 1.0) -> Op:
        check_embed(packed_weight(linear.weight), work, rotaries)
        tables = [
            cpu.Rotary(rotary.inv_freq.address, rotary.table.address, rotary.scale, rotary.inv_freq.shape[0])
            for rotary in rotaries
        ]
        struct = cpu.Embed(
            run=self._table.embed,
            member=linear_struct(linear),
            x=work.x.address,
            rotary=(cpu.Rotary * 2)(*tables),
            scale=scale,
        )
        return NativeOp(struct, self._pool, (linear, work, tuple(rotaries)), self._deltas)

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
        check_project([packed_weight(linear.weight) for linear in linears], x, outs, norm, epilogue)
        self._deltas.include_op(len(linears))
        scratch = self._scratch_for(outs[0].shape[0] if logits_only else x.shape[0], x.shape[-1])
        struct = cpu.Project(
            run=self._table.project,
            x=x.address,
            scratch=scratch.address,
            members=(cpu.Linear * 4)(*map(linear_struct, linears)),
            outs=(ctypes.c_void_p * 4)(*(out.address for out in outs)),
            norm=_norm(norm),
            softcap=softcap,
            num_members=len(linears),
            epilogue=_EPILOGUE[epilogue],
            activation=_ACTIVATION[activation],
            outlier_threshold=outlier_threshold,
            logits_only=int(logits_only),
            scale=scale,
        )
        return NativeOp(struct, self._pool, (tuple(linears), x, tuple(outs), norm, scratch), self._deltas)

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
        assert isinstance(kv, PackedKv)
        sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        check_attend(work, kv.shape, **sizes, rotary=rotary, norms=(q_norm, k_norm), full_norms=full_norms)
        positions = work.sizes.max_blocks * kv.shape.block_size
        scratch = self._scratch_bytes(cpu.load().mrs_attend_scratch(heads, kv_heads, head_dim, positions))
        struct = cpu.Attend(
            run=self._table.attend,
            q=work.q.address,
            k=work.k.address,
            v=work.v.address,
            rotary=rotary.table.address if rotary else None,
            kv=kv.layers[layer].address,
            out=work.attended.address,
            q_norm=q_norm.weight.address if q_norm else None,
            k_norm=k_norm.weight.address if k_norm else None,
            scratch=scratch.address,
            scratch_bytes=len(scratch.bytes),
            block_bytes=kv.block_bytes,
            norm_eps=next((norm.eps for norm in (q_norm, k_norm) if norm), 0.0),
            scale=scale,
            softcap=softcap,
            window=window,
            **sizes,
            rotary_half=rotary.inv_freq.shape[0] if rotary else 0,
            kv_type=kv.type,
            group=group,
            full_norms=int(full_norms),
            temperature_beta=temperature.beta if temperature else 0.0,
            temperature_period=temperature.period if temperature else 1,
        )
        return NativeOp(struct, self._pool, (work, kv, rotary, q_norm, k_norm, scratch), self._deltas)

    def row_sampler(self) -> NativeRowSampler:
        return NativeRowSampler(self._table, self._pool, self.threads)

    def normalize(self, x: Buffer, out: Buffer, *, norm: Norm) -> None:
        # in torch: the kernels' norm sums in another order, and embeddings would get other last bits
        from mistralrs.ops.reference_ops import normalize_rows

        normalize_rows(x, out, norm=norm)

    def add_norm(self, y: Buffer, x: Buffer, norm: Norm) -> Op:
        check_norm(norm, x.shape[-1])
        struct = cpu.AddNorm(self._table.add_norm, y.address, x.address, _norm(norm), x.shape[-1])
        return NativeOp(struct, self._pool, (y, x, norm), self._deltas)

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
        packed = [[packed_weight(linear.weight) for linear in linears] for linears in (gate, up, down)]
        routing = packed_weight(router.weight)
        check_moe(work, norm=norm, router=routing, gate=packed[0], up=packed[1], down=packed[2], used=used)
        self._deltas.include_op(2 * used)
        tokens, hidden = work.x.shape
        experts, pairs, ffn = len(gate), tokens * used, gate[0].weight.rows
        routes = cpu.load().mrs_moe_routes(tokens, experts, used)
        scratch = self._scratch_for(pairs + 8 * experts, max(hidden, ffn))
        normed, middle, outputs, table = (4 * tokens * hidden, 4 * pairs * ffn, 4 * pairs * hidden, 4 * routes)
        arena = Arena(normed + middle + outputs + table + 256)
        arrays = [linear_structs(linears) for linears in (gate, up, down)]
        struct = cpu.Moe(
            run=self._table.moe,
            x=work.x.address,
            router=linear_struct(router),
            gate=arrays[0],
            up=arrays[1],
            down=arrays[2],
            normed=arena.take(normed).address,
            hidden=arena.take(middle).address,
            outputs=arena.take(outputs).address,
            routes=arena.take(table).address,
            scratch=scratch.address,
            norm=_norm(norm),
            experts=experts,
            used=used,
            activation=_ACTIVATION[activation],
            outlier_threshold=outlier_threshold,
            normalize_weights=int(normalize_weights),
            scale=scale,
        )
        keep = (work, norm, router, tuple(gate), tuple(up), tuple(down), arrays, arena, scratch)
        return NativeOp(struct, self._pool, keep, self._deltas)

    def program(self, ops: Sequence[Op], args: StepArgs) -> Callable[[], None]:
        native = [op for op in ops if isinstance(op, NativeOp)]
        assert len(native) == len(ops)
        sample = NativeOp(cpu.Op(run=self._table.sample), self._pool, (), self._deltas)
        return NativeProgram([*native, sample], args, self._pool, self._deltas)


def _norm(norm: Norm | None) -> cpu.Norm:
    if norm is None:
        return cpu.Norm()
    return cpu.Norm(norm.weight.address, norm.bias.address if norm.bias else None, norm.eps, _NORM[norm.kind])
