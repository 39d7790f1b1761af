"""The folder in which chats keep their KV, so that a chat that is resumed does not compute its messages again."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from mistralrs.api.load_options import LoadOptions
from mistralrs.user_dirs import user_folder

LIMIT_BYTES = 2 << 30
"""Bytes of the folder, at most, where ``--kv-dir-size`` does not say."""
FREE_SHARE = 10
"""The folder takes no more than the disk's free space over this."""

logger = logging.getLogger("mistralrs.cli")


def with_kept_kv(load: LoadOptions) -> LoadOptions:
    """Returns the options of loading with the folder of chats, in the user's cache.

    They are unchanged where the user named a folder, or wants no KV to be reused. A folder that cannot be used is
    logged as a warning: such a chat computes its messages again when it is resumed, and lacks nothing else.
    """
    if load.kv_dir is not None or load.no_kv_cache or load.prefix_cache_n == 0:
        return load
    caches = user_folder("XDG_CACHE_HOME", ".cache")
    if caches is None:
        logger.warning("KV is not kept: there is no home folder; XDG_CACHE_HOME names another one")
        return load
    folder = caches / "kv"
    try:
        free = _free_bytes(folder)
    except OSError as error:
        logger.warning("KV is not kept in %s: %s", folder, error.strerror)
        return load
    return replace(load, kv_dir=folder, kv_dir_bytes=max(1, min(load.kv_dir_bytes, free // FREE_SHARE)))


def _free_bytes(folder: Path) -> int:
    """Makes the folder; returns the bytes that are free there. Raises ``OSError`` if it cannot be written."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "it may not be written")
    return shutil.disk_usage(folder).free
