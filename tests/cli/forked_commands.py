"""Runs commands in forks of one process that has imported torch already, which saves each of them seconds."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

IMPORTED = (
    "torch",
    "mistralrs_cli.start",
    "mistralrs_cli.app",
    "mistralrs_cli.arguments.command_line",
    "mistralrs_cli.arguments.invocation",
    "mistralrs_cli.one_shot",
    "mistralrs.api.local_model",
    "mistralrs.loading.pipeline",
    "mistralrs.engine.engine",
    "mistralrs.adapters.adapter_source",
    "mistralrs.adapters.xlora.xlora_executor",
)
"""None of them reads settings of the environment, which a command has its own of."""


CLOSED, UNREAD = "closed", "unread"
"""A stream that is not open, and a pipe whose reader is gone."""


@dataclass(frozen=True)
class _Command:
    words: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]
    streams: tuple[str, str, str]
    """The files of stdin, stdout and stderr; ``CLOSED`` or ``UNREAD``: it has none."""
    is_fake: bool = False
    """The scripted model stands in for any other."""


class ForkedCommands:
    """A process in whose forks commands run; a context manager."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)

    def __enter__(self) -> Self:
        self._files = TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.forked_commands"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()
        self._files.cleanup()

    def run(
        self, words: Sequence[str], *, folder: Path, environment: Mapping[str, str], stdin: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``mistralrs WORDS`` in ``folder``."""
        files = [Path(self._files.name, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin, encoding="utf-8")
        given, out, err = map(str, files)
        code = self._run(_Command(tuple(words), str(folder), dict(environment), (given, out, err)))
        return subprocess.CompletedProcess(list(words), code, *(file.read_text(encoding="utf-8") for file in files[1:]))

    def run_fake(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: str = "",
        out: str | None = None,
        err: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs it with the scripted model. ``out`` and ``err``: files for the streams, ``CLOSED`` or ``UNREAD``; None:
        one whose text is returned."""
        files = [Path(self._files.name, name) for name in ("stdin", "stdout", "stderr")]
        for file, text in zip(files, (stdin, "", ""), strict=True):
            file.write_text(text, encoding="utf-8")
        streams = (str(files[0]), out or str(files[1]), err or str(files[2]))
        code = self._run(_Command(tuple(words), os.getcwd(), dict(environment), streams, is_fake=True))
        return subprocess.CompletedProcess(list(words), code, *(file.read_text(encoding="utf-8") for file in files[1:]))

    def _run(self, command: _Command) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(command)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def serve() -> None:
    """Runs the commands that stand in lines of stdin, and writes the exit code of each to stdout."""
    for name in IMPORTED:
        importlib.import_module(name)
    assert "huggingface_hub" not in sys.modules, "it reads the environment when it is imported"
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                code = _run(_Command(**json.loads(line)))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 120
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(command: _Command) -> int:
    os.chdir(command.folder)
    os.environ.clear()
    os.environ.update(command.environment)
    for name, number, path in zip(("stdin", "stdout", "stderr"), range(3), command.streams, strict=True):
        mode = "w" if number else "r"
        _open(path, mode, number)
        stream = None if path == CLOSED else os.fdopen(number, mode, encoding="utf-8", closefd=False)
        setattr(sys, name, stream)
        if command.is_fake:
            setattr(sys, f"__{name}__", stream)
    sys.argv = ["mistralrs", *command.words]
    if command.is_fake:
        from mistralrs_cli.app import main
        from tests.cli.fake import load_fake

        return main(load=load_fake)
    from mistralrs_cli.start import start

    code = start()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _open(path: str, mode: str, number: int) -> None:
    if path == CLOSED:
        os.close(number)
    elif path == UNREAD:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, number)
    else:
        with open(path, mode) as file:
            os.dup2(file.fileno(), number)


if __name__ == "__main__":
    serve()
