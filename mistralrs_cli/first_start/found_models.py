"""Finds models on this machine: in the hub's cache, in the folders of other programs, and in the current folder.

Folders are only listed, and Ollama's manifests read; whether a model can be loaded shows when it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mistralrs.api.cached_models import cached_models
from mistralrs.errors import LoadError
from mistralrs.files import read_text
from mistralrs.parsing import parse_nested
from mistralrs.user_dirs import home_folder

_LATER_PART = re.compile(r".*-(?!00001)\d{5}-of-\d{5}\.gguf")
_MANIFEST_BYTES = 1 << 20
_MODEL_LAYER = "application/vnd.ollama.image.model"
_REGISTRY = "registry.ollama.ai/library/"
_MOST_FILES = 200
"""Files of one folder that are looked at, at most."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this machine."""

    name: str
    place: str
    """The program whose folder has it."""
    nbytes: int
    row: tuple[str, ...]
    """The words that name it on a command line."""


def found_models(environment: Mapping[str, str], folder: Path) -> list[FoundModel]:
    """Returns the models, the largest first. ``folder``: the current one."""
    home = home_folder()
    found = [*_of_the_hub(), *_ggufs(folder, "this folder", deep=False)]
    llama_cpp = environment.get("LLAMA_CACHE") or (home and home / ".cache" / "llama.cpp")
    ollama = environment.get("OLLAMA_MODELS") or (home and home / ".ollama" / "models")
    if llama_cpp:
        found += _ggufs(Path(llama_cpp), "llama.cpp", deep=False)
    if home:
        for studio in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"):
            found += _ggufs(studio, "LM Studio", deep=True)
    if ollama:
        found += _of_ollama(Path(ollama))
    return sorted(found, key=lambda model: (-model.nbytes, model.name))


def _of_the_hub() -> Iterator[FoundModel]:
    for model in cached_models():
        ggufs = [name for name in model.weights if _is_model(name)]
        for name in ggufs:
            files = [file for file in model.path.glob(f"snapshots/*/{name}") if file.is_file()]
            if files:
                row = ("auto", model.repo, "-f", name)
                yield FoundModel(f"{model.repo} {name}", "the hub's cache", files[0].stat().st_size, row)
        if not ggufs and any(name.endswith(".safetensors") for name in model.weights):
            yield FoundModel(model.repo, "the hub's cache", model.nbytes, ("auto", model.repo))


def _ggufs(folder: Path, place: str, *, deep: bool) -> list[FoundModel]:
    found = []
    try:
        for path in folder.glob("**/*.gguf" if deep else "*.gguf"):
            if _is_model(path.name) and path.is_file():
                found.append(FoundModel(path.name, place, path.stat().st_size, ("auto", str(path))))
            if len(found) == _MOST_FILES:
                break
    except OSError:  # a folder that may not be read has nothing for this user
        return found
    return found


def _is_model(name: str) -> bool:
    """Returns whether a file's name is that of a model, not of an image encoder or of a later part."""
    return name.endswith(".gguf") and "mmproj" not in name.lower() and not _LATER_PART.fullmatch(name)


def _of_ollama(folder: Path) -> Iterator[FoundModel]:
    manifests = folder / "manifests"
    if not os.access(manifests, os.R_OK | os.X_OK):
        return
    for path in sorted(manifests.rglob("*")):
        blob = _blob_of(path, folder) if path.is_file() else None
        if blob is not None and blob.is_file():
            *owner, tag = path.relative_to(manifests).parts
            name = f"{'/'.join(owner)}:{tag}".removeprefix(_REGISTRY)
            yield FoundModel(name, "Ollama", blob.stat().st_size, ("auto", str(blob)))


def _blob_of(manifest: Path, folder: Path) -> Path | None:
    """Returns the file of a manifest's model; None: it has none that is known."""
    try:
        layers = parse_nested(json.loads, read_text(manifest, limit=_MANIFEST_BYTES, hint=""))["layers"]
        digest = next(str(each["digest"]) for each in layers if each["mediaType"] == _MODEL_LAYER)
    except (LoadError, ValueError, KeyError, TypeError, StopIteration):
        return None
    return folder / "blobs" / digest.replace(":", "-") if re.fullmatch("sha256:[0-9a-f]{64}", digest) else None
