"""The CPU kernels: loads the shared library and mirrors the structs of ``csrc/structs.def``.

The library lists its structs' fields. ``load`` compares the mirror with that list and refuses what differs by name.

Everything here is addresses and integers; no torch and no numpy, so that weights can be packed while those are
imported.
"""

from __future__ import annotations

import ctypes as c
import hashlib
import os
from collections.abc import Iterable
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

ABI_VERSION = 19
ISAS = ("avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "neon_i8mm", "neon_dotprod", "portable", "amx_int8")
"""Instruction sets in the order of ``csrc/isas.def``: from the best to the plainest, and then those of ``BY_NAME``."""
BY_NAME = frozenset({"amx_int8"})
"""Instruction sets that run only where they are named: nobody has measured them."""


class Step(c.Structure):
    """``mrs_step``: the numbers of one step."""

    _fields_ = [
        ("tokens", c.c_void_p),
        ("positions", c.c_void_p),
        ("slot_mapping", c.c_void_p),
        ("query_start_loc", c.c_void_p),
        ("seq_lens", c.c_void_p),
        ("block_tables", c.c_void_p),
        ("logits_indices", c.c_void_p),
        ("use_start", c.c_void_p),
        ("use_slots", c.c_void_p),
        ("use_weights", c.c_void_p),
        ("scalings", c.c_void_p),
        ("delta_scratch", c.c_void_p),
        ("cancel_flag", c.c_void_p),
        ("wait_flag", c.c_void_p),
        ("sampling", c.c_void_p),
        ("sampling_scratch", c.c_void_p),
        ("num_slots", c.c_int32),
        ("scaling_layers", c.c_int32),
        ("max_rank", c.c_int32),
        ("only_slot", c.c_int32),
        ("num_tokens", c.c_int32),
        ("num_seqs", c.c_int32),
        ("num_logits", c.c_int32),
        ("num_sampling", c.c_int32),
        ("num_steps", c.c_int32),
        ("num_groups", c.c_int32),
        ("max_tokens", c.c_int32),
        ("max_seqs", c.c_int32),
        ("max_blocks", c.c_int32),
    ]


class Op(c.Structure):
    """``mrs_op``: the first field of every operation; sampling has no other."""

    _fields_ = [("run", c.c_void_p)]


class Weight(c.Structure):
    """``mrs_weight``: a matrix in panels, or in the layout of its file."""

    _fields_ = [
        ("data", c.c_void_p),
        ("bias", c.c_void_p),
        ("type", c.c_int32),
        ("rows", c.c_int32),
        ("cols", c.c_int32),
        ("row_bytes", c.c_int64),
        ("order", c.c_void_p),
    ]


class Delta(c.Structure):
    """``mrs_delta``: an adapter's addition to the products of a matrix."""

    _fields_ = [
        ("a", c.POINTER(Weight)),
        ("b", c.POINTER(Weight)),
        ("bias", c.c_void_p),
        ("row_factor", c.c_void_p),
        ("scale", c.c_float),
    ]


class Linear(c.Structure):
    """``mrs_linear``: a matrix and the deltas of all adapter slots."""

    _fields_ = [("weight", c.POINTER(Weight)), ("deltas", c.POINTER(Delta)), ("scaling_layer", c.c_int32)]


class Norm(c.Structure):
    """``mrs_norm``; ``kind`` 0 none, 1 RMS, 2 layer norm."""

    _fields_ = [("weight", c.c_void_p), ("bias", c.c_void_p), ("eps", c.c_float), ("kind", c.c_int32)]


class Project(c.Structure):
    """``mrs_project``: [norm] quantize, multiply, epilogue."""

    _fields_ = [
        ("run", c.c_void_p),
        ("x", c.c_void_p),
        ("scratch", c.c_void_p),
        ("members", Linear * 4),
        ("outs", c.c_void_p * 4),
        ("norm", Norm),
        ("softcap", c.c_float),
        ("num_members", c.c_int32),
        ("epilogue", c.c_int32),
        ("activation", c.c_int32),
        ("outlier_threshold", c.c_float),
        ("logits_only", c.c_int32),
        ("scale", c.c_float),
    ]


class Rotary(c.Structure):
    """``mrs_rotary``: cosines and sines of a step; ``half`` 0: none."""

    _fields_ = [("inv_freq", c.c_void_p), ("table", c.c_void_p), ("scale", c.c_float), ("half", c.c_int32)]


class Embed(c.Structure):
    """``mrs_embed``: embedding rows and the step's rotary tables."""

    _fields_ = [
        ("run", c.c_void_p),
        ("member", Linear),
        ("x", c.c_void_p),
        ("rotary", Rotary * 2),
        ("scale", c.c_float),
    ]


class AddNorm(c.Structure):
    """``mrs_add_norm``: x += norm(y)."""

    _fields_ = [("run", c.c_void_p), ("y", c.c_void_p), ("x", c.c_void_p), ("norm", Norm), ("cols", c.c_int64)]


class Attend(c.Structure):
    """``mrs_attend``: head norms, rotary embedding, cache write, attention."""

    _fields_ = [
        ("run", c.c_void_p),
        ("q", c.c_void_p),
        ("k", c.c_void_p),
        ("v", c.c_void_p),
        ("rotary", c.c_void_p),
        ("kv", c.c_void_p),
        ("out", c.c_void_p),
        ("q_norm", c.c_void_p),
        ("k_norm", c.c_void_p),
        ("scratch", c.c_void_p),
        ("scratch_bytes", c.c_int64),
        ("block_bytes", c.c_int64),
        ("norm_eps", c.c_float),
        ("scale", c.c_float),
        ("softcap", c.c_float),
        ("window", c.c_int32),
        ("heads", c.c_int32),
        ("kv_heads", c.c_int32),
        ("head_dim", c.c_int32),
        ("rotary_half", c.c_int32),
        ("kv_type", c.c_int32),
        ("group", c.c_int32),
        ("full_norms", c.c_int32),
        ("temperature_beta", c.c_float),
        ("temperature_period", c.c_int32),
    ]


class Moe(c.Structure):
    """``mrs_moe``: a mixture of experts."""

    _fields_ = [
        ("run", c.c_void_p),
        ("x", c.c_void_p),
        ("router", Linear),
        ("gate", c.POINTER(Linear)),
        ("up", c.POINTER(Linear)),
        ("down", c.POINTER(Linear)),
        ("normed", c.c_void_p),
        ("hidden", c.c_void_p),
        ("outputs", c.c_void_p),
        ("routes", c.c_void_p),
        ("scratch", c.c_void_p),
        ("norm", Norm),
        ("outlier_threshold", c.c_float),
        ("experts", c.c_int32),
        ("used", c.c_int32),
        ("activation", c.c_int32),
        ("normalize_weights", c.c_int32),
        ("scale", c.c_float),
    ]


class Sampling(c.Structure):
    """``mrs_sampling``: one token to be sampled."""

    _fields_ = [
        ("logits", c.c_void_p),
        ("history", c.c_void_p),
        ("dry_tokens", c.c_void_p),
        ("dry_penalties", c.c_void_p),
        ("bias_tokens", c.c_void_p),
        ("bias_values", c.c_void_p),
        ("mask", c.c_void_p),
        ("banned", c.c_void_p),
        ("ends", c.c_void_p),
        ("appended", c.c_void_p),
        ("top_tokens", c.c_void_p),
        ("top_logprobs", c.c_void_p),
        ("draw", c.c_double),
        ("xtc_draw", c.c_double),
        ("logprob", c.c_double),
        ("temperature", c.c_double),
        ("typical_p", c.c_double),
        ("top_p", c.c_double),
        ("min_p", c.c_double),
        ("xtc_probability", c.c_double),
        ("xtc_threshold", c.c_double),
        ("frequency_penalty", c.c_double),
        ("presence_penalty", c.c_float),
        ("repetition_penalty", c.c_float),
        ("top", c.c_float),
        ("num_history", c.c_int32),
        ("num_dry", c.c_int32),
        ("num_bias", c.c_int32),
        ("num_banned", c.c_int32),
        ("num_ends", c.c_int32),
        ("num_top", c.c_int32),
        ("top_k", c.c_int32),
        ("vocab_size", c.c_int32),
        ("num_stages", c.c_int32),
        ("num_processors", c.c_int32),
        ("token", c.c_int32),
        ("stages", c.c_int32 * 8),
    ]


class Table(c.Structure):
    """``mrs_table``: the functions of one instruction set."""

    _fields_ = [
        ("name", c.c_char_p),
        ("project", c.c_void_p),
        ("embed", c.c_void_p),
        ("attend", c.c_void_p),
        ("add_norm", c.c_void_p),
        ("moe", c.c_void_p),
        ("unpack_row", c.CFUNCTYPE(None, c.POINTER(Weight), c.c_int64, c.c_void_p)),
        ("pack_panel", c.CFUNCTYPE(None, c.POINTER(Weight), c.c_int64, c.c_void_p)),
        ("sample", c.c_void_p),
        ("probe", c.CFUNCTYPE(c.c_int64, c.c_void_p, c.c_int64, c.c_int64, c.c_void_p)),
    ]


class FieldInfo(c.Structure):
    """``mrs_field``: a field as the library was compiled; ``kind`` is that of ``_kind``."""

    _fields_ = [("name", c.c_char_p), ("offset", c.c_int32), ("bytes", c.c_int32), ("kind", c.c_int32)]


class StructInfo(c.Structure):
    """``mrs_struct``: a struct as the library was compiled."""

    _fields_ = [
        ("name", c.c_char_p),
        ("fields", c.POINTER(FieldInfo)),
        ("num_fields", c.c_int32),
        ("bytes", c.c_int32),
    ]


STRUCTS: dict[str, type[c.Structure]] = {
    "mrs_step": Step,
    "mrs_op": Op,
    "mrs_weight": Weight,
    "mrs_delta": Delta,
    "mrs_linear": Linear,
    "mrs_norm": Norm,
    "mrs_project": Project,
    "mrs_rotary": Rotary,
    "mrs_embed": Embed,
    "mrs_add_norm": AddNorm,
    "mrs_attend": Attend,
    "mrs_moe": Moe,
    "mrs_sampling": Sampling,
    "mrs_table": Table,
}
"""The mirror: the library's structs by their names there."""


class KernelError(Exception):
    """The compiled kernels cannot be used; the message says why."""


def library_path() -> Path | None:
    """Where the shared library is: beside this file, or where an editable installation put it."""
    name = "libmistralrs_cpu.so"
    beside = Path(__file__).parent / name
    if beside.exists():
        return beside
    import importlib.metadata  # here: it takes longer to import than the kernels to load

    try:
        files = importlib.metadata.files("mistralrs-cli") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name == name)
    return next((path for path in found if path.exists()), None)


def _named_path() -> Path:
    path = Path(os.environ["MISTRALRS_KERNELS"]) if os.environ.get("MISTRALRS_KERNELS") else library_path()
    if path is None:
        raise KernelError("not built")
    return path


@cache
def digest() -> str:
    """Of the library's bytes, 32 hex digits: two builds of one version may differ. Raises ``KernelError``."""
    return hashlib.blake2b(_named_path().read_bytes(), digest_size=16).hexdigest()


@cache
def load() -> c.CDLL:
    """The library with its signatures set.

    Raises ``KernelError`` when it is absent, switched off by ``MISTRALRS_NO_NATIVE=1``, or of another version.
    ``MISTRALRS_KERNELS`` names another file to load.
    """
    if os.environ.get("MISTRALRS_NO_NATIVE", "") not in ("", "0"):
        raise KernelError("switched off by MISTRALRS_NO_NATIVE")
    path = _named_path()
    try:
        lib = c.CDLL(str(path))
    except OSError as error:
        raise KernelError(str(error)) from error
    version = lib.mrs_abi_version()
    if version != ABI_VERSION:
        raise KernelError(f"{path} has ABI {version}, this package needs {ABI_VERSION}: build it again")
    _declare(lib)
    count = c.c_int32()
    structs = lib.mrs_structs(c.byref(count))
    if difference := mirror_difference(structs[: count.value]):
        raise KernelError(f"{path}: {difference}: build it again")
    return lib


def mirror_difference(structs: Iterable[StructInfo]) -> str | None:
    """The first difference between the library's ``structs`` and their mirror here, in words; None when they agree."""
    infos = {info.name.decode(): info for info in structs}
    for name, mirror in STRUCTS.items():
        if (info := infos.get(name)) is None:
            return f"it has no struct {name}"
        theirs = [(f.name.decode(), f.offset, f.bytes, chr(f.kind)) for f in info.fields[: info.num_fields]]
        ours = [
            (key, getattr(mirror, key).offset, getattr(mirror, key).size, _kind(type_)) for key, type_ in _items(mirror)
        ]
        for there, here in zip_longest(theirs, ours):
            if there != here:
                return f"{name} has {_words(there)} there and {_words(here)} here"
        if info.bytes != c.sizeof(mirror):
            return f"{name} has {info.bytes} bytes there and {c.sizeof(mirror)} here"
    return None


def _items(mirror: type[c.Structure]) -> list[tuple[str, Any]]:
    return [(field[0], field[1]) for field in mirror._fields_]


def _kind(type_: Any) -> str:
    """The library's letter for a field's type; of an array, that of its items."""
    while issubclass(type_, c.Array):
        type_ = type_._type_
    if issubclass(type_, c.Structure):
        return "s"
    return {c.c_int32: "i", c.c_int64: "l", c.c_float: "f", c.c_double: "d"}.get(type_, "P")


def _words(field: tuple[str, int, int, str] | None) -> str:
    if field is None:
        return "no such field"
    name, offset, size, kind = field
    return f"{name} ({size} bytes of kind {kind} at {offset})"


def _declare(lib: c.CDLL) -> None:
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "mrs_structs": (c.POINTER(StructInfo), [c.POINTER(c.c_int32)]),
        "mrs_table_at": (c.POINTER(Table), [c.c_int]),
        "mrs_packed_bytes": (c.c_int64, [c.c_int, c.c_int64, c.c_int64]),
        "mrs_project_scratch": (c.c_int64, [c.c_int64, c.c_int64]),
        "mrs_kv_block_bytes": (c.c_int64, [c.c_int, c.c_int64, c.c_int64]),
        "mrs_attend_scratch": (c.c_int64, [c.c_int64, c.c_int64, c.c_int64, c.c_int64]),
        "mrs_moe_routes": (c.c_int64, [c.c_int64, c.c_int64, c.c_int64]),
        "mrs_sampling_scratch": (c.c_int64, [c.c_int64, c.c_int64]),
        "mrs_run": (None, [c.c_void_p, c.c_int64, c.c_void_p, c.c_void_p]),
        "mrs_pack": (
            c.c_int,
            [c.c_int, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.c_void_p, c.c_void_p, c.c_void_p],
        ),
        "mrs_packing_start": (c.c_void_p, [c.c_int]),
        "mrs_packing_add": (
            None,
            [c.c_void_p, c.c_int, c.c_void_p, *[c.c_int64] * 3, c.c_void_p, c.c_void_p, c.c_void_p, c.c_int64],
        ),
        "mrs_packing_wait": (c.c_int64, [c.c_void_p, c.c_int64, c.c_int64, c.c_int]),
        "mrs_packing_end": (None, [c.c_void_p]),
        "mrs_quantize": (
            c.c_int,
            [c.c_int, c.c_void_p, c.c_int64, c.c_int64, c.c_void_p, c.c_void_p],
        ),
        "mrs_pool_acquire": (c.c_void_p, [c.c_int]),
        "mrs_pool_release": (None, [c.c_void_p]),
        "mrs_pool_workers": (c.c_int, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


def tables(*, by_name: bool = False) -> dict[str, Table]:
    """The instruction sets that this processor runs, the best first. ``by_name``: those of ``BY_NAME`` too, which the
    library tries in a process of its own when it is first asked for them.
    """
    lib = load()
    pointers = {isa: lib.mrs_table_at(index) for index, isa in enumerate(ISAS) if by_name or isa not in BY_NAME}
    return {isa: pointer.contents for isa, pointer in pointers.items() if pointer}
