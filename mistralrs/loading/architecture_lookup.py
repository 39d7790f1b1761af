"""Finds a file's format, its architecture, the mapping of its weights and the decoder's spec."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mistralrs.errors import LoadError
from mistralrs.loading.ggml_file import MAGICS as GGML_MAGICS
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.models.architecture import ModelMetadata, WeightsMapping
from mistralrs.models.multimodal import TEXT_TYPES
from mistralrs.models.registry import ARCHITECTURES, GGUF_NAMES, GGUF_OTHER_NAMES, HF_MODEL_TYPES
from mistralrs.models.spec import DecoderSpec


def kind_of(path: Path) -> Literal["safetensors", "gguf", "ggml"]:
    """Returns the format by the file's first bytes; a folder is safetensors. The GGUF reader refuses unknown files."""
    if path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json")):
        return "safetensors"
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError:
        return "gguf"
    return "ggml" if magic in GGML_MAGICS else "gguf"


def hugging_face_mapping(path: Path, config: Mapping[str, object], expected: str | None) -> tuple[str, WeightsMapping]:
    """Returns the folder's architecture and mapping. Raises LoadError if it is unsupported or not ``expected``."""
    kind = config.get("model_type")
    found = HF_MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    form = ARCHITECTURES[found].hugging_face if found else None
    if found is None or form is None:
        raise _unsupported(path, kind, (*HF_MODEL_TYPES, *TEXT_TYPES))
    if expected is not None and expected != found:
        raise wrong_architecture(path, repr(found), expected, f"{found} -m")
    return found, form


def gguf_mapping_of(file: GgufFile, expected: str | None) -> tuple[str, WeightsMapping]:
    """Returns the file's architecture and mapping. Raises LoadError if it is unsupported or not ``expected``."""
    found = file.require("general.architecture", str)
    if file.metadata.get("general.type") == "adapter":
        command = f"mistralrs adapter inspect {shlex.quote(str(file.path))}"
        raise LoadError(
            f"{file.path} is a LoRA adapter, not a model",
            hint=f"give the model that it was made for: {command} shows it",
        )
    if found == "clip":
        raise LoadError(
            f"{file.path} holds the vision part of a multimodal model",
            hint="give the file with its language model, which lies beside it; images are not read",
        )
    architecture, form = GGUF_OTHER_NAMES.get(found, (found, None))
    if form is None and found in ARCHITECTURES:
        form = ARCHITECTURES[found].gguf
    if form is None:
        known = (name for name, row in ARCHITECTURES.items() if row.gguf)
        raise _unsupported(file.path, found, (*known, *GGUF_OTHER_NAMES))
    if expected is not None:
        # Some architectures share a GGUF name with another and differ only by their experts.
        experts = file.get(f"{found}.expert_count", int, default=0) > 0
        if (architecture, experts) != (GGUF_NAMES[expected], ARCHITECTURES[expected].mixture):
            raise wrong_architecture(file.path, f"{found!r}{' with experts' if experts else ''}", expected, "gguf -f")
    return architecture, form


def read_spec(path: Path, form: WeightsMapping, facts: ModelMetadata) -> DecoderSpec:
    """Returns the spec of the decoder that the metadata describes. Raises ``LoadError`` with the file's name."""
    with naming(path):
        return form.spec(facts)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file's name to errors that lack it, and a hint to those without one."""
    try:
        yield
    except LoadError as error:
        if str(path) in error.message:
            raise
        hint = error.hint or "the model is damaged, or of a kind that is not supported yet: fetch it again, or another"
        raise LoadError(f"{path}: {error.message}", hint=hint) from error


def _unsupported(path: Path, found: object, supported: Iterable[str]) -> LoadError:
    return LoadError(
        f"{path} holds the architecture {found!r}, which is not supported yet",
        hint=f"supported: {', '.join(sorted(set(supported)))}",
    )


def wrong_architecture(path: Path, found: str, expected: str, subcommand: str) -> LoadError:
    """Returns the error for another architecture than requested; its hint runs the model with ``subcommand``."""
    return LoadError(
        f"{path} holds the architecture {found}, not {expected!r}",
        hint=f"this command works: mistralrs -i {subcommand} {shlex.quote(str(path))}",
    )
