"""Finds the files of a LoRA adapter from what a user names it by, and reads them for a model.

A source is a folder as peft saves it, a GGUF file, a folder that holds one of these, or a hub repository, perhaps with
``@revision``. The folder or file in a repository stands behind its name: ``owner/name/folder@revision``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mistralrs.adapters.lora.gguf_lora import read_gguf_lora, read_gguf_lora_header
from mistralrs.adapters.lora.lora import LoraAdapter
from mistralrs.adapters.lora.lora_config import CONFIG_NAME, read_lora_config
from mistralrs.adapters.lora.module_names import module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.adapters.lora.peft_tensors import WEIGHTS_NAME
from mistralrs.adapters.xlora.xlora_config import CONFIG_NAMES
from mistralrs.errors import LoadError, RequestError
from mistralrs.loading.checkpoint import pickle_error
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.hub_files import fetch, fetch_optional, list_files
from mistralrs.models.spec import DecoderSpec
from mistralrs.progress import Progress
from mistralrs.user_dirs import expand_user

_KINDS = "an adapter is a folder as peft saves it, a GGUF file, or a hub repository with one of these"
_PICKLES = (".bin", ".pt", ".pth", ".pkl")
_MAX_LISTED = 8


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """The files of an adapter, on this machine."""

    source: str
    """The place by which it is found again, without a subfolder beside it."""
    path: Path
    """The folder of peft, or the GGUF file."""
    kind: Literal["peft", "gguf"]

    @property
    def is_alora(self) -> bool:
        """Whether it acts only from its invocation tokens on. Raises ``LoadError`` for a header that is not valid."""
        if self.kind == "peft":
            return bool(read_lora_config(self.path / CONFIG_NAME).alora_invocation_tokens)
        with GgufFile.open(self.path) as file:
            return bool(read_gguf_lora_header(file).invocation_tokens)


class AdapterReader:
    """Finds and reads adapters for one model."""

    def __init__(self, architecture: str, spec: DecoderSpec, *, token: Callable[[], str | None]) -> None:
        """``token``: yields the hub's token when something has to be fetched."""
        self._architecture = architecture
        self._spec = spec
        self._token = token

    def find(self, source: str, subfolder: str | None = None) -> FoundAdapter:
        """As ``find_adapter``."""
        return find_adapter(source, subfolder, token=self._token)

    def read(self, name: str, found: FoundAdapter) -> LoraAdapter:
        """The adapter under this name. Raises ``LoadError`` and ``FormatError`` for one that is damaged, not supported,
        or not for this model; they name the file and the key."""
        if found.kind == "gguf":
            adapter = read_gguf_lora(found.path, name=name, architecture=self._architecture, spec=self._spec)
            return replace(adapter, source=found.source)
        names = module_names(self._architecture, self._spec)
        return read_peft(found.path, names, name=name, source=found.source)

    def read_source(self, name: str, source: str) -> LoraAdapter:
        """The adapter at a place that ``FoundAdapter.source`` names. Raises as ``find`` and ``read`` do."""
        return self.read(name, self.find(source))


def find_adapter(
    source: str,
    subfolder: str | None = None,
    *,
    token: Callable[[], str | None],
    progress: Progress | None = None,
) -> FoundAdapter:
    """The files of the adapter that ``source`` names, fetched if they are on the hub and not in its cache.

    An existing folder or file has priority over a repository of the same name. ``subfolder``: where in it the adapter
    is. Raises ``LoadError`` for a place that does not have one adapter, and for what cannot be fetched.
    """
    local = expand_user(source)
    if os.path.exists(local):
        return _local(local / subfolder if subfolder else local)
    if source.startswith((".", "/", "~")) or source.count("/") < 1 or (source.count("/") == 1 and _is_file(source)):
        raise LoadError(f"{source}: there is no such folder or file", hint=_KINDS)
    return _remote(source, subfolder, token(), progress)


def is_gguf(path: Path) -> bool:
    """Returns whether the adapter at a path that ``find_adapter`` found is a GGUF file; otherwise it is a folder."""
    return not path.is_dir()


def hub_place(source: str, subfolder: str | None = None) -> str | None:
    """Returns a place on the hub in the one way of writing it, ``owner/name/folder@revision``; None: it is none, or
    something on this machine has this name."""
    name, at, revision = source.partition("@")
    if source.startswith((".", "/", "~")) or "/" not in name or "\0" in source or os.path.exists(source):
        return None
    return "/".join([name, *filter(None, [subfolder])]) + at + revision


def check_inside(found: FoundAdapter, root: Path) -> None:
    """Raises ``RequestError`` if a file of the adapter lies outside the folder ``root``, links followed."""
    files = [found.path]
    if found.kind == "peft":
        files += [found.path / CONFIG_NAME, found.path / WEIGHTS_NAME]
    for file in files:
        require_inside(file, root)


def require_inside(path: Path, root: Path) -> Path:
    """The real path. Raises ``RequestError`` if it is outside the folder ``root``; the error does not say whether
    something is there."""
    try:
        real = Path(os.path.realpath(path))
    except ValueError:  # it has a null character
        real = None
    if real is None or not real.is_relative_to(os.path.realpath(root)):
        raise RequestError(
            "lora_path is outside the folder of adapters",
            hint="adapters are loaded from --adapter-root while serving",
            code="adapter_path_forbidden",
            param="lora_path",
        )
    return real


def _is_file(source: str) -> bool:
    return source.endswith((".gguf", ".safetensors", ".json", *_PICKLES))


# On this machine


def _local(path: Path) -> FoundAdapter:
    source = os.path.abspath(path)
    if path.is_dir():
        if (path / CONFIG_NAME).is_file():
            return FoundAdapter(source, path, "peft")
        files = sorted(each.name for each in path.iterdir() if each.name.endswith(".gguf"))
        folders = sorted(each.name for each in path.iterdir() if (each / CONFIG_NAME).is_file())
        file = path / _only(str(path), files, folders, is_xlora=(path / CONFIG_NAMES["package"]).is_file())
        return FoundAdapter(os.path.abspath(file), file, "gguf")
    if not path.is_file():
        raise LoadError(f"{path}: there is no such folder or file", hint=_KINDS)
    if path.name in (CONFIG_NAME, WEIGHTS_NAME):
        raise LoadError(f"{path} is one of an adapter's two files", hint=f"name their folder: {path.parent}")
    if path.suffix in _PICKLES:
        raise pickle_error(path)
    if path.suffix != ".gguf":
        raise LoadError(f"{path} is not the file of an adapter", hint=_KINDS)
    return FoundAdapter(source, path, "gguf")


def _only(place: str, files: Sequence[str], folders: Sequence[str], *, is_xlora: bool) -> str:
    """The only GGUF file of a folder or repository. Raises ``LoadError`` if it has none, or several."""
    if len(files) == 1 and not folders:
        return files[0]
    several = [*files, *folders]
    if not several:
        raise LoadError(f"{place} has no adapter: neither {CONFIG_NAME} nor a GGUF file", hint=_KINDS)
    listed = ", ".join(several[:_MAX_LISTED]) + (", ..." if len(several) > _MAX_LISTED else "")
    hint = f"name one of them, such as {place}/{several[0]}"
    if is_xlora:
        hint += "; its classifier mixes them with an x-lora row or --xlora"
    raise LoadError(f"{place} has several adapters: {listed}", hint=hint)


# On the hub


def _remote(source: str, subfolder: str | None, token: str | None, progress: Progress | None) -> FoundAdapter:
    name, at, revision = source.partition("@")
    owner, own, *rest = name.split("/")
    repo = f"{owner}/{own}{at}{revision}"
    inside = "/".join([*filter(None, rest), *filter(None, [subfolder])])

    def place(inner: str) -> str:
        return "/".join([owner, own, *filter(None, [inner])]) + at + revision

    def get(file: str) -> Path:
        return fetch(repo, file, token=token, progress=progress)

    if inside.endswith(".gguf"):
        return FoundAdapter(place(inside), get(inside), "gguf")
    prefix = f"{inside}/" if inside else ""
    config = fetch_optional(repo, prefix + CONFIG_NAME, token=token, progress=progress)
    if config is not None:
        get(prefix + WEIGHTS_NAME)
        return FoundAdapter(place(inside), config.parent, "peft")
    files, folders, is_xlora = _listed(repo, prefix, token)
    file = prefix + _only(place(inside), files, folders, is_xlora=is_xlora)
    return FoundAdapter(place(file), get(file), "gguf")


def _listed(repo: str, prefix: str, token: str | None) -> tuple[list[str], list[str], bool]:
    """The GGUF files and the adapters' folders directly below ``prefix``, and whether a config of X-LoRA is there."""
    names = [name.removeprefix(prefix) for name in list_files(repo, token=token) if name.startswith(prefix)]
    files = [name for name in names if name.endswith(".gguf") and "/" not in name]
    folders = [name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG_NAME}")]
    return files, [folder for folder in folders if "/" not in folder], CONFIG_NAMES["package"] in names
