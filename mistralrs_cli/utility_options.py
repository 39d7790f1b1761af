"""The options after the subcommands that select no model."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs.api.options.model_options import gqa_option
from mistralrs.api.options.option import argument, option
from mistralrs.quant.quantize import ISQ_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The options after ``bench``."""

    n_prompt: int = option(
        512, "--n-prompt", "-p", metavar="N", least=0, help="Tokens of the prompt test; 0: no such test."
    )
    n_gen: int = option(
        128, "--n-gen", "-n", metavar="N", least=0, help="Tokens of the generation test; 0: no such test."
    )
    concurrency: str = option("1", "--concurrency", "-c", metavar="N,N,...", help="Streams at once.")
    repetitions: int = option(5, "--repetitions", "-r", metavar="N", least=1, help="How often each test runs.")
    json: bool = option(False, "--json", help="One JSON object a line and test instead of tables.")


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """The options after ``inspect``."""

    source: str = argument(..., metavar="SOURCE", help="The model: a hub repository, a folder or a file.")
    filename: str | None = option(
        None, "--filename", "-f", metavar="FILE", help="A file of the repository or folder, where several are models."
    )
    gqa: int | None = gqa_option()
    json: bool = option(False, "--json", help="One JSON object instead of text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsOptions:
    """The options after ``models``."""

    action: Literal["list", "delete"] = argument("list", metavar="list|delete", help="The action.")
    name: str | None = argument(None, metavar="NAME", help="The repository to delete, as OWNER/NAME.")
    yes: bool = option(False, "--yes", "-y", help="Delete without asking.")
    json: bool = option(False, "--json", help="One JSON object instead of a table.")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """The options after ``quantize``."""

    source: str = argument(..., metavar="SOURCE", help="The safetensors: a hub repository, a folder or a file.")
    out: Path = argument(..., metavar="OUT", help="The GGUF file to write.")
    type: str = option(..., "--type", metavar="TYPE", help=f"The type of the weights: {', '.join(ISQ_TYPES)}.")
