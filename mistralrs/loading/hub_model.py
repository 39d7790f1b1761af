"""Fetches the files of a hub repository that are a model, and no others.

Files are chosen by name; only `config.json` and the index of weights are read. All files of a model come from one
commit, however long ago the first of them was fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mistralrs.errors import LoadError
from mistralrs.files import read_json
from mistralrs.loading.architecture_lookup import hugging_face_mapping
from mistralrs.loading.checkpoint import pickle_error
from mistralrs.loading.gguf_file import part_names
from mistralrs.loading.hub_files import NotReachedError, cached, fetch, fetch_optional, list_files
from mistralrs.loading.model_metadata import read_config
from mistralrs.loading.safetensors_file import INDEX_NAME, SINGLE_NAME, refuse_quantized_config
from mistralrs.models.multimodal import text_config
from mistralrs.progress import Progress

_CONFIG = "config.json"
_TEXT = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.json",
)
_OF_PROCESSORS = ("chat_template.json",)
"""Files in which multimodal models may have their template."""
_OLDER_TEXT = ("tokenizer.model", "added_tokens.json")
"""Files of models without a `tokenizer.json`."""
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_MOST_NAMES = 24
"""File names that a hint lists, at most."""

_logger = logging.getLogger(__name__)


def fetch_model(
    repo: str, *, architecture: str | None = None, token: str | None = None, progress: Progress | None = None
) -> Path:
    """The local folder of the safetensors model in the hub repository ``repo``; downloads files that the cache lacks.

    A model that cannot be loaded, or is not of the requested ``architecture``, is refused before its weights are
    fetched. A repository without safetensors, but with one GGUF model, gives that model's file. Revisions, cache,
    ``token`` and errors are as in ``hub_files.fetch``; a cached model needs no request. Raises ``LoadError`` also if
    the repository has several GGUF models, which it names, or none that can be read.
    """
    config = fetch_optional(repo, _CONFIG, token=token, progress=progress)
    if config is None:
        return _fetch_single_file(repo, token, progress)
    pinned = _pinned(repo, config, _CONFIG)
    content = read_config(config)
    text = text_config(content)
    if "model_type" in content:  # repositories of GGUF files may have an empty config.json
        refuse_quantized_config(config)
        hugging_face_mapping(Path(repo), content if text is None else text, architecture)
    weights = _fetch_first(pinned, (INDEX_NAME, SINGLE_NAME), token, progress)
    if weights is None:
        return _fetch_single_file(repo, token, progress)
    if weights.name == INDEX_NAME:
        for name in _indexed_names(weights):
            fetch(pinned, name, token=token, progress=progress)
    _fetch_text(pinned, _TEXT if text is None else (*_OF_PROCESSORS, *_TEXT), token, progress)
    return config.parent


def fetch_parts(repo: str, filename: str, *, token: str | None = None, progress: Progress | None = None) -> Path:
    """The local path of a file, as ``hub_files.fetch`` gives it; for a part of a split GGUF model, fetches all
    parts."""
    path = fetch(repo, filename, token=token, progress=progress)
    pinned = _pinned(repo, path, filename)
    for name in part_names(filename):
        if name != filename:
            fetch(pinned, name, token=token, progress=progress)
    return path


def local_model(path: Path) -> Path:
    """``path``; if it is a folder without safetensors, but with one GGUF model, that model's file.

    Raises ``LoadError`` when such a folder has several.
    """
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return path
    names = _models(sorted(file.name for file in path.glob("*.gguf")))
    return path / _only(str(path), names) if names else path


def _pinned(repo: str, path: Path, filename: str) -> str:
    """``repo`` at the commit of its cached file ``filename``."""
    return f"{repo.partition('@')[0]}@{path.parents[filename.count('/')].name}"


def _fetch_first(repo: str, names: Sequence[str], token: str | None, progress: Progress | None) -> Path | None:
    """The first of the files that the cache has, or else the first that the repository has; None if it has none."""
    for name in names:
        if path := cached(repo, name):
            return path
    for name in names:
        if path := fetch_optional(repo, name, token=token, progress=progress):
            return path
    return None


def _indexed_names(index: Path) -> list[str]:
    """The files that an index of weights names. Opening the model checks the rest of the index."""
    try:
        weights: Any = read_json(index, hint="delete it, so that it is fetched anew")["weight_map"]
        names = set(weights.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{index} is no index of weights: {error!r}", hint="delete it, so that it is fetched anew"
        ) from error
    invalid = [name for name in names if not isinstance(name, str) or not name.endswith(".safetensors")]
    if invalid:
        raise LoadError(
            f"{index} names {str(invalid[0])[:80]!r}, which is no .safetensors file",
            hint="delete it, so that it is fetched anew",
        )
    return sorted(names)


def _fetch_text(repo: str, names: Sequence[str], token: str | None, progress: Progress | None) -> None:
    """Fetches the tokenizer's and the template's files, as far as the repository has them. If it lacks the last of
    ``names``, also fetches the older files that this one replaces.

    If the hub is out of reach, the files in the cache are used: other tools, which may have put the model there, do not
    record which files a repository lacks.
    """
    try:
        found = [fetch_optional(repo, name, token=token, progress=progress) for name in names]
        if found[-1] is None:
            for name in _OLDER_TEXT:
                fetch_optional(repo, name, token=token, progress=progress)
    except NotReachedError as error:
        _logger.info("%s; the model is used without it", error.message)


def _fetch_single_file(repo: str, token: str | None, progress: Progress | None) -> Path:
    """The one GGUF model of a repository that has no safetensors model."""
    names = list_files(repo, token=token)
    models = _models([name for name in names if name.endswith(".gguf")])
    if models:
        return fetch_parts(repo, _only(repo, models), token=token, progress=progress)
    pickles = [name for name in names if any(PurePosixPath(name).match(pattern) for pattern in _PICKLES)]
    if pickles:
        raise pickle_error(Path(repo, pickles[0]))
    others = [name for name in names if name.endswith((".safetensors", ".bin"))]
    raise LoadError(
        f"{repo} has no {SINGLE_NAME}, no {INDEX_NAME} and no GGUF file",
        hint=f"name a file with -f: {_listed(others)}" if others else "it may hold an adapter, or no model at all",
    )


def _models(names: Sequence[str]) -> list[str]:
    """One file name for each model; for a split model its first part. Files named mmproj, which by llama.cpp's
    convention hold the vision part of a multimodal model, do not count if there are others."""
    first = [name for name in names if part_names(name)[0] == name]
    return [name for name in first if "mmproj" not in PurePosixPath(name).name.lower()] or first


def _only(place: str, models: Sequence[str]) -> str:
    if len(models) > 1:
        raise LoadError(f"{place} has {len(models)} GGUF models", hint=f"choose one with -f: {_listed(models)}")
    return models[0]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
