"""The models that are on this machine: those in the hub's cache, and the default model's file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mistralrs.api.default_model import find_default_model
from mistralrs.errors import LoadError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

_logger = logging.getLogger(__name__)
_WEIGHTS = (".gguf", ".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A hub repository in the cache, with all its revisions that are there."""

    repo: str
    path: Path
    nbytes: int
    """Bytes on the disk; files that revisions share count once."""
    modified: float
    """Seconds since 1970."""
    revisions: tuple[str, ...]
    """Branches and tags, and commits that have neither, in alphabetical order."""
    weights: tuple[str, ...]
    """The names of the files with weights, in alphabetical order."""


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """The model that runs when none is named."""

    path: Path | None
    """None: the file is not on this machine."""
    nbytes: int
    hint: str | None
    """The way to get it, if it is not on this machine."""


def default_model() -> DefaultModel:
    """Returns the default model's file, or the way to get it."""
    try:
        path = find_default_model()
    except LoadError as error:
        return DefaultModel(None, 0, error.hint)
    return DefaultModel(path, path.stat().st_size, None)


def cached_models() -> list[CachedModel]:
    """Returns the models in the hub's cache, the largest first."""
    info = _scan()
    models = []
    for repo in info.repos if info else ():
        if repo.repo_type != "model":
            continue
        names = {
            str(file.file_path.relative_to(revision.snapshot_path))
            for revision in repo.revisions
            for file in revision.files
        }
        models.append(
            CachedModel(
                repo=repo.repo_id,
                path=repo.repo_path,
                nbytes=repo.size_on_disk,
                modified=repo.last_modified,
                revisions=tuple(sorted(n for r in repo.revisions for n in (r.refs or {r.commit_hash}))),
                weights=tuple(sorted(name for name in names if name.endswith(_WEIGHTS))),
            )
        )
    return sorted(models, key=lambda model: (-model.nbytes, model.repo))


def delete_cached_model(repo: str) -> int:
    """Removes a repository from the hub's cache; returns the bytes freed. Raises ``UsageError`` if it is not there."""
    info = _scan()
    found = [each for each in info.repos if each.repo_id == repo and each.repo_type == "model"] if info else []
    if info is None or not found:
        raise UsageError(f"{repo} is not in the hub's cache", hint="mistralrs models lists what is")
    # commits are looked up by hash alone, and repositories that were copied share theirs
    strategy = replace(info, repos=frozenset(found)).delete_revisions(
        *(revision.commit_hash for revision in found[0].revisions)
    )
    strategy.execute()
    return strategy.expected_freed_size


def _scan() -> HFCacheInfo | None:
    """Returns the content of the cache; None: there is no cache yet, or no home folder that could have one."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from mistralrs.loading.hub_files import has_cache

    if not has_cache():
        return None
    try:
        info = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None
    for warning in info.warnings:
        _logger.warning("left out of the list: %s", warning)
    return info
