"""Finds the files of one adapter: a folder as `peft` saves it, or a GGUF file; on this machine or on the hub."""

from __future__ import annotations

from pathlib import Path

from mistralrs.adapters.lora_config import CONFIG_NAME
from mistralrs.adapters.peft_tensors import WEIGHTS_NAME
from mistralrs.errors import LoadError
from mistralrs.loading.hub_files import fetch, fetch_optional
from mistralrs.loading.hub_model import fetch_model, local_model
from mistralrs.progress import Progress


def local_adapter(path: Path) -> Path:
    """The adapter's folder if it is one of `peft`, otherwise its GGUF file. ``path`` is one of them, a file in such a
    folder, or a folder with one GGUF file. Raises ``LoadError`` for a folder with no adapter or with several."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name in (CONFIG_NAME, WEIGHTS_NAME):
        if (folder / CONFIG_NAME).is_file():
            return folder
        file = local_model(folder)
        if file == folder:
            raise LoadError(
                f"{folder} has no {CONFIG_NAME} and no GGUF file", hint="give the folder of an adapter, or a GGUF file"
            )
        return file
    return path


def fetch_adapter(repo: str, *, token: str | None = None, progress: Progress | None = None) -> Path:
    """The adapter in the hub repository ``repo``, as ``local_adapter`` gives it; downloads what the cache lacks. Both
    files of `peft` come from one commit. Errors are as in ``hub_files.fetch``."""
    config = fetch_optional(repo, CONFIG_NAME, token=token, progress=progress)
    if config is None:
        return local_adapter(fetch_model(repo, token=token, progress=progress))
    pinned = f"{repo.partition('@')[0]}@{config.parent.name}"
    fetch(pinned, WEIGHTS_NAME, token=token, progress=progress)
    return config.parent


def is_gguf(path: Path) -> bool:
    """Whether the adapter that ``local_adapter`` found is a GGUF file; otherwise it is a folder."""
    return not path.is_dir()
