"""Which files the words after a row mean: local ones that are there, or those of a hub repository. Opens nothing."""

from __future__ import annotations

import shlex
from pathlib import Path

from mistralrs.api.default_model import find_default_model
from mistralrs.api.local import ModelSource
from mistralrs.api.selectors import Row
from mistralrs.errors import LoadError, UsageError
from mistralrs_cli.commands import Selection
from mistralrs_cli.options import AutoOptions, GgmlOptions, PlainOptions, QuantizedOptions


def find_source(selection: Selection | None) -> ModelSource:
    """What a row and its options name; None is the default model.

    Raises ``UsageError`` when they name nothing, and ``LoadError`` when a local file is missing or the row is one with
    adapters, which cannot be loaded yet.
    """
    if selection is None:
        return ModelSource(architecture=None, path=find_default_model(), repo=None, filename=None)
    row, options = selection.row, selection.options
    if row.adapter is not None:
        base = row.name.removeprefix(f"{row.adapter}-")
        raise LoadError(
            f"{row.name}: adapters are not there yet, so nothing was loaded", hint=f"{base} runs without an adapter"
        )
    if isinstance(options, PlainOptions):
        return _plain_source(row, options)
    if isinstance(options, AutoOptions):
        return _auto_source(options)
    return _file_source(row, options)


def anywhere(word: str, filename: str | None, *, architecture: str | None = None, gqa: int = 1) -> ModelSource:
    """A model named by one word: a path, if there is something, else a hub repository.

    ``filename``: the file in it. Raises ``LoadError`` when a local file is missing.
    """
    place = Path(word).expanduser()
    if place.exists():
        path = place / filename if filename is not None and place.is_dir() else place
        if filename is not None and path.name != Path(filename).name:
            raise UsageError(f"{word} is a file, so -f {filename} means nothing", hint="leave one of them out")
        return ModelSource(architecture, _existing(path), None, None, gqa)
    if word.startswith((".", "/", "~")) or place.suffix in (".gguf", ".safetensors", ".bin"):
        raise LoadError(f"{word} does not exist", hint="name a file, a folder, or a hub repository as OWNER/NAME")
    return ModelSource(architecture, None, word, filename, gqa)


def _plain_source(row: Row, options: PlainOptions) -> ModelSource:
    model = options.model_id if options.model_id is not None else row.base_repo
    if not model:
        raise UsageError(f"{row.name} needs -m REPO or a path", hint=f"mistralrs -i {row.name} -m OWNER/NAME")
    return anywhere(model, None, architecture=row.architecture)


def _auto_source(options: AutoOptions) -> ModelSource:
    if options.source and options.model_id:
        raise UsageError(f"{options.source} and -m {options.model_id} both name the model", hint="give one of them")
    word = options.source or options.model_id or options.filename
    if not word:
        raise UsageError("auto needs a model", hint="mistralrs -i auto OWNER/NAME, or the path of a folder or a file")
    filename = options.filename if word != options.filename else None
    return anywhere(word, filename, gqa=options.gqa or 1)


def _file_source(row: Row, options: QuantizedOptions) -> ModelSource:
    """``-m ''`` and a path that exists make ``-f`` local, anything else is a hub repository."""
    where, filename = options.quantized_model_id, options.quantized_filename
    if where is None and row.quantized_repo is None:
        where = ""
    if where is None and filename is not None and Path(filename).is_file():
        raise UsageError(
            f"{filename} is here, but {row.name} looks for it in {row.quantized_repo}",
            hint=f"add -m '' for the local file, or -m {row.quantized_repo}",
        )
    filename = filename or row.quantized_filename
    if filename is None:
        command = f"-i auto {where}" if where else f"-i {row.name} -f model.gguf"
        raise UsageError(f"{row.name} needs -f FILE", hint=f"mistralrs {command}")
    gqa = (options.gqa if isinstance(options, GgmlOptions) else None) or row.gqa
    if where == "" or (where is not None and Path(where).exists()):
        path = Path(where) / filename if where and Path(where).is_dir() else Path(filename)
        return ModelSource(row.architecture, _existing(path, files_only=row.name), None, None, gqa)
    return ModelSource(row.architecture, None, where or row.quantized_repo, filename, gqa)


def _existing(path: Path, *, files_only: str | None = None) -> Path:
    """``path``, if something is there. ``files_only``: the row that takes no folder."""
    if path.is_file() or (path.is_dir() and files_only is None):
        return path
    if path.is_dir():
        hint = f"-f names the file; a folder of safetensors runs with: mistralrs -i auto {shlex.quote(str(path))}"
        raise LoadError(f"{path} is a folder, not a file", hint=hint)
    where = f"; -m REPO {files_only} takes one from a hub repository" if files_only else ""
    raise LoadError(f"{path} does not exist", hint=f"-f names the file{where}")
