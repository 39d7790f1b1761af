"""The tensors of an `adapter_model.safetensors`, sorted by module and by what they are there."""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.checkpoint import RawTensor, pickle_error
from mistralrs.loading.cursor import shown
from mistralrs.loading.safetensors_file import SafetensorsFile
from mistralrs.models.multimodal import layout_of, renamed
from mistralrs.ops.weight import Matrix, read_vector
from mistralrs.quant.types import QuantType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLE_NAME = "adapter_model.bin"

_XLORA = "base_model.lora_model."
"""The start of names in adapters that peft has saved with an X-LoRA."""
_PREFIX = re.compile(rf"^(base_model\.|{re.escape(_XLORA)})model\.")
_LORA = re.compile(
    r"(?P<path>.+?)(?P<nest>(?:\.base_layer)*)\.(?P<slot>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?P<rest>\..+)?"
)
_ROWS = re.compile(r"(?P<path>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?")
_PLAIN = re.compile(r"(?P<path>.+?)(?P<base>\.base_layer)?\.(?P<slot>weight|bias)")
_SLOTS = {
    ("lora_A", "weight"): "lora_A",
    ("lora_B", "weight"): "lora_B",
    ("lora_B", "bias"): "lora_B.bias",
    ("lora_magnitude_vector", "weight"): "lora_magnitude_vector",
    ("lora_magnitude_vector", ""): "lora_magnitude_vector",
    ("lora_embedding_A", ""): "lora_embedding_A",
    ("lora_embedding_B", ""): "lora_embedding_B",
}
"""By name and what follows it, but for an adapter's name."""
_EXPONENTS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""The bits that are all set in infinities and NaNs."""
_HINT = "the adapter is damaged, or for another base: fetch it again, or choose its base"

Slots = dict[str, RawTensor]


@dataclass(slots=True)
class PeftTensors:
    """The tensors by the path of their module, such as ``model.layers.0.self_attn.q_proj``."""

    path: Path
    layout: tuple[str, str]
    """What the names of the language model and of its head begin with in the file; see ``models.multimodal``."""
    lora: dict[tuple[str, int], Slots] = field(default_factory=dict)
    """By path and depth: the parameters of one module are wrapped in each other."""
    rows: dict[str, RawTensor] = field(default_factory=dict)
    """``trainable_tokens_delta``."""
    plain: dict[str, Slots] = field(default_factory=dict)
    """``weight`` and ``bias`` of modules that stand in the file as they are; ``parameter``: one without such a name."""
    base: dict[str, Slots] = field(default_factory=dict)
    """``weight`` and ``bias`` of the module below an adapter."""

    def name_in_file(self, path: str) -> str:
        """The path of a module as the file has it, where the model is part of a multimodal one."""
        return name_in(self.layout, path)

    def error(self, name: str, reason: str, *, hint: str = _HINT) -> FormatError:
        """The error about a tensor."""
        return FormatError(str(self.path), f"tensor {shown(name)}", reason, hint=hint)

    def bits(self, raw: RawTensor, shape: tuple[int, ...], *, means: str) -> NDArray[np.unsignedinteger[Any]]:
        """A copy of a tensor's values as the bits of their type. ``means``: where the expected ``shape`` comes from.

        Raises ``FormatError`` for another shape, and for values that are not finite.
        """
        import numpy as np

        self.check_shape(raw, shape, means=means)
        kind = np.dtype(np.uint32 if raw.type.name == "F32" else np.uint16)
        values: NDArray[np.unsignedinteger[Any]] = np.frombuffer(bytearray(raw.data), dtype=kind).reshape(raw.shape)
        exponent = _EXPONENTS[raw.type.name]
        if bool(((values & exponent) == exponent).any()):
            raise self.error(raw.name, "has values that are not finite, expected numbers")
        return values

    def check_shape(self, raw: RawTensor, shape: tuple[int, ...], *, means: str) -> None:
        """Raises ``FormatError`` for a tensor of another shape."""
        if raw.shape != shape:
            found, wanted = (" x ".join(map(str, sizes)) or "one number" for sizes in (raw.shape, shape))
            raise self.error(raw.name, f"is {found}, expected {wanted} ({means})")

    def vector(self, raw: RawTensor, length: int, *, means: str) -> array[float]:
        """A vector in float32. Raises as ``bits`` does."""
        values = self.bits(raw, (length,), means=means)
        return read_vector(raw.name, raw.type, memoryview(values.tobytes()))


def name_in(layout: tuple[str, str], path: str) -> str:
    """Returns the path of a module, such as ``model.layers.0.self_attn.q_proj``, in the names of a layout of
    ``models.multimodal``."""
    model, head = layout
    if path == "lm_head":
        return head.removesuffix(".")
    return model + path.removeprefix("model.")


def matrix_of(name: str, type: QuantType, bits: NDArray[np.unsignedinteger[Any]]) -> Matrix:
    """The matrix (rows, columns) that consists of these values, as the bits of their type."""
    import numpy as np

    rows, columns = bits.shape
    return Matrix(name, type, rows, columns, np.ascontiguousarray(bits).data.cast("B"))


def read_tensors(folder: Path) -> PeftTensors:
    """The tensors of the adapter in ``folder``. Maps the file; no tensor is read yet.

    Raises ``LoadError`` and ``FormatError`` for a file that is missing, damaged, a pickle, or has names that are not
    those of a LoRA adapter.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        if (folder / _PICKLE_NAME).exists():
            raise pickle_error(folder / _PICKLE_NAME)
        raise LoadError(f"{folder} has no {WEIGHTS_NAME}", hint="give the folder of an adapter, as peft saves it")
    with SafetensorsFile.open(path, reads_config=False) as file:
        return sorted_tensors(path, file.tensors)


def layout_in(folder: Path) -> tuple[str, str] | None:
    """Returns the layout of the names in the weights of ``folder``, of which only the header is read; None: it has no
    weights. Raises ``FormatError`` for a file that is damaged."""
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        return None
    with SafetensorsFile.open(path, reads_config=False) as file:
        return layout_of(_PREFIX.sub("", name, count=1) for name in file.tensors if not _is_of_xlora(name))


def sorted_tensors(path: Path, tensors: Mapping[str, RawTensor]) -> PeftTensors:
    """The ``tensors`` of the file at ``path``, sorted."""
    stripped = {_PREFIX.sub("", name, count=1): name for name in tensors if not _is_of_xlora(name)}
    found = PeftTensors(path, layout_of(stripped))
    names = renamed(stripped, found.layout)
    if len(names) < len(stripped):
        reason = "%s acts on images as well, which are not read: %d of its tensors are left out"
        logger.warning(reason, path.parent, len(stripped) - len(names))
    for own, plain in names.items():
        name = stripped[own]
        raw = tensors[name]
        if not _sort(found, plain, raw):
            raise found.error(name, "is not one that a LoRA adapter has, expected lora_A, lora_B and the like")
    return found


def _is_of_xlora(name: str) -> bool:
    """Whether a tensor stands in an adapter's file only because the adapter was saved with an X-LoRA: its classifier,
    which has a file of its own, and the base's weights, since peft takes all with ``lora_`` in their names."""
    return "internal_xlora_classifier." in name or (
        name.startswith(_XLORA) and "lora_" not in name.removeprefix(_XLORA)
    )


def _sort(found: PeftTensors, name: str, raw: RawTensor) -> bool:
    """Puts a tensor where it belongs; False: it belongs nowhere."""
    if match := _LORA.fullmatch(name):
        slot = _slot(match["slot"], match["rest"] or "")
        place = found.lora.setdefault((match["path"], match["nest"].count(".")), {})
    elif match := _ROWS.fullmatch(name):
        slot, place = match["path"], found.rows
    elif match := _PLAIN.fullmatch(name):
        slot = match["slot"]
        place = (found.base if match["base"] else found.plain).setdefault(match["path"], {})
    elif "lora_" not in name and "." in name:
        slot, place = "parameter", found.plain.setdefault(name, {})
    else:
        return False
    if slot is None:
        return False
    if slot in place:
        raise found.error(raw.name, f"stands for {shown(name)}, of which there is another: the file has two adapters")
    place[slot] = raw
    return True


def _slot(name: str, rest: str) -> str | None:
    """``rest``: what follows the name, which may be an adapter's name, ``weight`` or ``bias``, or both."""
    pieces = rest.split(".")[1:]
    last = pieces[-1] if pieces and pieces[-1] in ("weight", "bias") else ""
    if len(pieces) - bool(last) > 1:
        return None
    return _SLOTS.get((name, last))
