"""Finds files by name: in the hub's cache, on the hub, or in a local folder.

The cache is the one that all tools of the hub share (``HF_HOME``). ``HF_ENDPOINT``, ``HF_HUB_OFFLINE`` and the proxy
variables have the same meaning as for those tools.
"""

from __future__ import annotations

import difflib
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistralrs.errors import LoadError, UsageError
from mistralrs.progress import Progress
from mistralrs.user_dirs import expand_user

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_ANSWER_SECONDS = 5.0
"""Seconds to wait for an answer of the hub. The hub's client alone would wait for about 24 seconds."""

_NAMES = "it is relative to the repository, and has no empty part, no '.', no '..' and no backslash"


class NotInRepositoryError(LoadError):
    """The repository and the revision exist, but not the file."""


class NotReachedError(LoadError):
    """The hub did not answer, or HF_HUB_OFFLINE forbids requests."""


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    repo: str
    revision: str
    name: str

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repo}{at}: {self.name}"


def fetch(
    repo: str,
    filename: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The local path of ``filename`` in the hub repository ``repo``, downloaded unless the cache has it.

    ``repo`` is ``owner/name`` or ``owner/name@revision``; a revision is a branch, a tag or a commit, ``main`` unless
    given. A cached file is used without any request, even if its branch has changed since. A broken download is
    resumed. ``token`` is sent only if given; tokens in the environment are ignored.

    Raises LoadError if the file cannot be fetched (NotInRepositoryError if the repository does not have it) and
    UsageError if ``repo`` names a second revision.
    """
    file = _remote_file(repo, filename, revision)
    return _cached(file) or _download(file, token, progress)


def fetch_optional(
    repo: str,
    filename: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Path | None:
    """Like ``fetch``, but None if the repository does not have the file, which the cache then records."""
    file = _remote_file(repo, filename, revision)
    if _known_absent(file):
        return None
    try:
        return _cached(file) or _download(file, token, progress)
    except NotInRepositoryError:
        return None


def cached(repo: str, filename: str) -> Path | None:
    """The local path of ``filename`` if the cache has it, else None. Raises like ``fetch`` for invalid names."""
    return _cached(_remote_file(repo, filename, None))


def list_files(repo: str, *, token: str | None = None) -> list[str]:
    """The names of all files of the hub repository ``repo``, sorted; those in folders as ``folder/name``.

    The cache is not used. Raises LoadError like ``fetch``.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    listing = _remote_file(repo, "the list of files", None)
    _refuse_offline(listing)
    try:
        return sorted(HfApi().list_repo_files(listing.repo, revision=listing.revision, token=token or False))
    except (HTTPError, OSError) as error:
        raise _load_error(error, listing, token) from error


def companion(place: str, name: str, *, token: str | None = None, progress: Progress | None = None) -> Path | None:
    """A small file such as ``tokenizer.json`` in ``place``, a local folder or a hub repository; None if it has none.

    An existing folder takes priority over a repository of the same name. Raises LoadError like ``fetch``, and if
    ``place`` looks like a path but is not a folder.
    """
    folder = expand_user(place)
    if os.path.isdir(folder):
        path = folder / name
        return path if os.path.exists(path) else None
    if os.path.exists(folder) or place.startswith((".", "/", "~")):
        raise LoadError(f"{place}: there is no such folder", hint="name a folder, or a hub repository as owner/name")
    return fetch_optional(place, name, token=token, progress=progress)


def _remote_file(repo: str, filename: str, revision: str | None) -> _RemoteFile:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not marked so

    name, at, named_revision = repo.partition("@")
    if at and not named_revision:
        raise UsageError(f"{repo}: the revision after the @ is missing", hint="write it as OWNER/NAME@REVISION")
    if named_revision and revision and named_revision != revision:
        raise UsageError(
            f"{repo}: two revisions are asked for, {named_revision} and {revision}", hint="leave one of them out"
        )
    if not _is_inside(filename):
        raise LoadError(f"{name}: '{filename}' cannot be the name of a file in a repository", hint=_NAMES)
    chosen = named_revision or revision or "main"
    if not _is_inside(chosen):
        raise LoadError(f"{name}: '{chosen}' cannot be the name of a revision", hint=_NAMES)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise LoadError(
            f"'{name}' cannot be the name of a hub repository",
            hint="a repository is owner/name; a file that is here already runs with: mistralrs -i gguf -f PATH",
        ) from error
    return _RemoteFile(name, chosen, filename)


def _is_inside(name: str) -> bool:
    """Returns whether a path of this name stays inside of the folder to which it is relative."""
    return "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _cached(file: _RemoteFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    if not has_cache():
        return None
    found = try_to_load_from_cache(file.repo, file.name, revision=file.revision)
    return Path(found) if isinstance(found, str) else None


def has_cache() -> bool:
    """Returns whether the hub's cache has a folder, for which ``HF_HOME`` or a home folder is needed."""
    from huggingface_hub import constants

    # The client would treat a ~ that cannot be expanded as a folder in the working directory.
    return not constants.HF_HUB_CACHE.startswith("~")


def _known_absent(file: _RemoteFile) -> bool:
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return has_cache() and (try_to_load_from_cache(file.repo, file.name, revision=file.revision) is _CACHED_NO_EXIST)


def _download(file: _RemoteFile, token: str | None, progress: Progress | None) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever client library is in use

    _refuse_offline(file)
    if not has_cache():
        raise LoadError(f"{file}: there is no home folder that could keep it", hint="set HF_HOME to a folder of yours")
    timeout = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else _ANSWER_SECONDS
    # With None the hub's client would look for a token by itself.
    sent_token: str | bool = token or False
    try:
        _check_room(file, _remote_size(file, sent_token, timeout), Path(constants.HF_HUB_CACHE))
        path = hf_hub_download(
            file.repo,
            file.name,
            revision=file.revision,
            token=sent_token,
            etag_timeout=timeout,
            tqdm_class=_reporter(file.name, progress),
        )
    # The client's second transport (Xet) raises RuntimeError when a transfer fails.
    except (HTTPError, OSError, RuntimeError) as error:
        raise _load_error(error, file, token) from error
    return Path(path)


def _refuse_offline(file: _RemoteFile) -> None:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise NotReachedError(
            f"{file} is not in the cache, and HF_HUB_OFFLINE forbids to download it",
            hint="unset HF_HUB_OFFLINE; a file that is here already runs with: mistralrs -i gguf -f PATH",
        )


def _remote_size(file: _RemoteFile, token: str | bool, timeout: float) -> int | None:
    """Bytes of the file, None if unknown. Asks without retries, so that a missing network is noticed at once."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    url = hf_hub_url(file.repo, file.name, revision=file.revision)
    try:
        return get_hf_file_metadata(url, token=token, timeout=timeout).size
    except EntryNotFoundError:
        return None  # The download meets the error again, and records it in the cache.


def _check_room(file: _RemoteFile, size: int | None, cache: Path) -> None:
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size is not None and free < size:
        raise LoadError(
            f"{file} takes {_size(size)}, and the disk of {cache} has {_size(free)} left",
            hint="make room, or set HF_HOME to a folder on a larger disk",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _reporter(name: str, progress: Progress | None) -> type[Any]:
    """A class with the methods of a tqdm bar that the hub's client calls. It calls ``progress`` and shows nothing."""

    class Reporter:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
            self.total = total
            self.n = initial
            self._reported = -1
            self.update(0)

        def update(self, count: float | None = 1) -> None:
            self.n += int(count or 0)
            # After an interruption the client may start again and count down, which a progress bar must not show.
            if progress is not None and self.n > self._reported:
                self._reported = self.n
                progress(name, self.n, self.total or 0)

        def update_transfer(self, count: float | None = 1) -> None:
            """Ignores bytes received, because ``update`` counts them again when they are written."""

        def set_postfix_str(self, text: str, *, refresh: bool = True) -> None:
            """Ignores the speed as text, which the caller's progress bar computes itself."""

        set_transfer_postfix_str = set_postfix_str

        def close(self) -> None:
            """Has nothing to close."""

        def __enter__(self) -> Reporter:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    return Reporter


def _load_error(error: Exception, file: _RemoteFile, token: str | None) -> LoadError:
    """The error for the user, for an error of the hub's client."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _load_error(error.__cause__, file, token)
    if isinstance(error, HfHubHTTPError):
        return _http_error(error, file, token)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return LoadError(f"{file}: the disk is full", hint="make room, or set HF_HOME to a folder on a larger disk")
    if isinstance(error, PermissionError) and error.filename:
        return LoadError(f"{file}: cannot write {error.filename}", hint="set HF_HOME to a folder of yours")
    return _unreachable(error, file)


def _unreachable(error: Exception, file: _RemoteFile) -> LoadError:
    from huggingface_hub import constants

    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return NotReachedError(
        f"{file} is not in the cache, and downloading it from {constants.ENDPOINT} failed: {reason}",
        hint="check the network and try again; a file that is here already runs with: mistralrs -i gguf -f PATH",
    )


def _http_error(error: HfHubHTTPError, file: _RemoteFile, token: str | None) -> LoadError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{file.repo}"
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        then = "use the token of the account that was let in" if token else "give a token with --token-source"
        return LoadError(f"{file.repo} is gated", hint=f"accept its licence at {page}, then {then}")
    if isinstance(error, RevisionNotFoundError):
        return LoadError(f"{file.repo} has no revision '{file.revision}'", hint=f"see {page}/commits")
    if isinstance(error, EntryNotFoundError):
        return NotInRepositoryError(f"{file.repo} has no file '{file.name}'", hint=_similar_names_hint(file, token))
    if status == 401 and error.response.headers.get("X-Error-Message") == "Invalid credentials in Authorization header":
        return LoadError(f"{page} refuses the token", hint="check it, or use --token-source none for a public model")
    if isinstance(error, RepositoryNotFoundError):
        rest = "the token's account may not see it" if token else "it is private: give a token with --token-source"
        return LoadError(f"there is no repository {file.repo}, or it cannot be seen", hint=f"check the name, or {rest}")
    if status in (401, 403):
        return LoadError(f"{page} refuses access ({status})", hint="give a token that may read it with --token-source")
    return LoadError(f"{file}: {constants.ENDPOINT} answers {status}", hint="try again later")


def _similar_names_hint(file: _RemoteFile, token: str | None) -> str:
    """A hint with similar names of files in the repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        names = list(HfApi().list_repo_files(file.repo, revision=file.revision, token=token or False))
    except (HTTPError, OSError) as error:
        return f"its files could not be listed either ({type(error).__name__})"
    same_kind = [name for name in names if name.endswith(Path(file.name).suffix)]
    by_lower = {name.lower(): name for name in same_kind}
    close = difflib.get_close_matches(file.name.lower(), by_lower, n=5, cutoff=0.7)
    candidates = [by_lower[name] for name in close] or same_kind[:8]
    return f"it has {', '.join(candidates)}" if candidates else f"it has no {Path(file.name).suffix} file"
