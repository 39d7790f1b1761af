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


@dataclass(frozen=True)
class _Command:
    words: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]
    streams: tuple[str, str, str]
    """The files of stdin, stdout and stderr."""


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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        files = [Path(self._files.name, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin, encoding="utf-8")
        given, out, err = map(str, files)
        command = _Command(tuple(words), str(folder), dict(environment), (given, out, err))
        self._process.stdin.write(json.dumps(asdict(command)) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(list(words), code, *(file.read_text(encoding="utf-8") for file in files[1:]))


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
    for number, (path, mode) in enumerate(zip(command.streams, ("r", "w", "w"), strict=True)):
        with open(path, mode) as file:
            os.dup2(file.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate(("r", "w", "w"))
    )
    sys.argv = ["mistralrs", *command.words]
    from mistralrs_cli.start import start

    code = start()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
