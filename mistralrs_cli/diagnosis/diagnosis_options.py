"""The options after ``config``, ``doctor``, ``verify``, ``tune`` and ``completions``."""

# ruff: noqa: RUF009  (``argument`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistralrs.api.options.model_options import gqa_option
from mistralrs.api.options.option import argument, option


def _json() -> Any:
    return option(False, "--json", help="One JSON object instead of text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOptions:
    """The options after ``config``."""

    json: bool = _json()


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """The options after ``doctor``."""

    api: str | None = option(
        None, "--api", metavar="URL", help="Check a server of OpenAI's API instead of this machine, any maker's."
    )
    hub: bool = option(False, "--hub", help="Ask the hub too whether it answers.")
    json: bool = _json()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """The options after ``verify``."""

    file: Path = argument(..., metavar="FILE", help="A GGUF, safetensors or GGML file, or a folder of safetensors.")
    sha256: str | None = option(
        None,
        "--sha256",
        metavar="HEX",
        shown_default="that of FILE.sha256, of SHA256SUMS or of the hub's cache, where there is one",
        help="The checksum that the file must have.",
    )
    json: bool = _json()


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """The options after ``tune``."""

    source: str = argument(..., metavar="SOURCE", help="The model: a hub repository, a folder or a file.")
    filename: str | None = option(
        None, "--filename", "-f", metavar="FILE", help="A file of the repository or folder, where several are models."
    )
    gqa: int | None = gqa_option()
    memory: str | None = option(
        None, "--memory", metavar="SIZE", shown_default="what is free", help="Memory that may be used, such as 16G."
    )
    json: bool = _json()


DiagnosisOptions = ConfigOptions | DoctorOptions | VerifyOptions | TuneOptions
"""The options of the commands here."""
