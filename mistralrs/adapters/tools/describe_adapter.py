"""Describes an adapter without its base model: collects what ``mistralrs adapter inspect`` shows from its headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mistralrs.adapters.adapter_source import is_gguf
from mistralrs.adapters.lora.gguf_lora import read_gguf_lora_header
from mistralrs.adapters.lora.lora_config import CONFIG_NAME, LoraConfig, read_lora_config
from mistralrs.adapters.lora.peft_tensors import WEIGHTS_NAME, Slots, read_tensors
from mistralrs.loading.checkpoint import RawTensor
from mistralrs.loading.gguf_file import GgufFile

_HALF_BYTES, _VECTOR_BYTES = 2, 4


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """The modules of one name, such as those of all layers, on which an adapter acts."""

    name: str
    matrices: int
    """Low-rank pairs; those of all experts in one tensor are one."""
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDescription:
    """The description of an adapter."""

    path: Path
    container: str
    """The file format: ``PEFT`` or ``GGUF version 3``."""
    kind: str
    """``LoRA``, ``LoRA with DoRA``, ``aLoRA``."""
    base_model: str | None
    """What the adapter calls its base model."""
    architecture: str | None
    """That of the base, as GGUF files name it; a folder of `peft` does not say so."""
    ranks: tuple[int, ...]
    alpha: float | None
    """None: the scale is 1."""
    matrices: int
    """Low-rank pairs."""
    places: tuple[AdapterPlace, ...]
    types: tuple[tuple[str, int], ...]
    """Names of types with their numbers of tensors, the most frequent first."""
    invocation_tokens: tuple[int, ...]
    """aLoRA: it acts from these on."""
    extras: tuple[str, ...]
    """What it has besides low-rank matrices."""
    parameters: int
    file_bytes: int
    slot_bytes: int
    """Memory that it takes beside a model, without the padding of the kernels: its low-rank matrices in half precision.
    0 for one that acts only where it is merged."""


def describe_adapter(path: Path) -> AdapterDescription:
    """Describes the adapter at ``path``, as ``adapter_source.find_adapter`` finds it.

    Raises ``LoadError`` and ``FormatError`` for a file that is damaged or no LoRA adapter.
    """
    return _of_gguf(path) if is_gguf(path) else _of_peft(path)


def _of_gguf(path: Path) -> AdapterDescription:
    with GgufFile.open(path) as file:
        header = read_gguf_lora_header(file)
        found = [(_last_name(name.removesuffix(".weight")), b.shape[-1]) for name, (_, b) in header.pairs.items()]
        tensors = [tensor for pair in header.pairs.values() for tensor in pair]
        return AdapterDescription(
            path=path,
            container=f"GGUF version {file.version}",
            kind="aLoRA" if header.invocation_tokens else "LoRA",
            base_model=header.base,
            architecture=header.architecture,
            alpha=header.alpha or None,
            invocation_tokens=header.invocation_tokens,
            extras=(),
            file_bytes=file.file_bytes,
            slot_bytes=_slot_bytes(tensors),
            ranks=_ranks(rank for _, rank in found),
            matrices=len(found),
            places=_places(found),
            types=_types(tensors),
            parameters=sum(prod(tensor.shape) for tensor in tensors),
        )


def _of_peft(path: Path) -> AdapterDescription:
    config, tensors = read_lora_config(path / CONFIG_NAME), read_tensors(path)
    found = [(_last_name(module), _rank(slots)) for (module, _), slots in tensors.lora.items()]
    low_rank = [raw for slots in tensors.lora.values() for raw in slots.values()]
    others = [raw for slots in tensors.plain.values() for raw in slots.values()]
    stored = [*low_rank, *others, *tensors.rows.values()]
    kind = "aLoRA" if config.alora_invocation_tokens else "LoRA"
    return AdapterDescription(
        path=path,
        container="PEFT",
        kind=f"{kind} with DoRA" if config.use_dora else kind,
        base_model=config.base_model,
        architecture=None,
        ranks=_ranks(rank for _, rank in found),
        alpha=config.lora_alpha,
        matrices=len(found),
        places=_places(found),
        types=_types(stored),
        invocation_tokens=config.alora_invocation_tokens,
        extras=tuple(_extras(config)),
        parameters=sum(prod(raw.shape) for raw in stored),
        file_bytes=(path / WEIGHTS_NAME).stat().st_size,
        slot_bytes=0 if others or tensors.rows else _slot_bytes(low_rank),
    )


def _slot_bytes(low_rank: Iterable[RawTensor]) -> int:
    return sum(prod(raw.shape) * (_HALF_BYTES if len(raw.shape) > 1 else _VECTOR_BYTES) for raw in low_rank)


def _extras(config: LoraConfig) -> Iterator[str]:
    for field in ("use_rslora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters"):
        if getattr(config, field):
            yield field
    if config.bias != "none":
        yield "bias"


def _rank(slots: Slots) -> int:
    """The columns of B; where a file lacks it, the reader says so when the model is known."""
    b = slots.get("lora_B") or slots.get("lora_embedding_B")
    return b.shape[-1] if b and b.shape else 0


def _last_name(module: str) -> str:
    return module.rpartition(".")[2]


def _ranks(ranks: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(ranks)))


def _places(found: Sequence[tuple[str, int]]) -> tuple[AdapterPlace, ...]:
    names: dict[str, list[int]] = {}
    for name, rank in found:
        names.setdefault(name, []).append(rank)
    return tuple(AdapterPlace(name, len(ranks), _ranks(ranks)) for name, ranks in names.items())


def _types(tensors: Iterable[RawTensor]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(tensor.type.name for tensor in tensors).most_common())
