"""The options of adapters that stand before a row: which there are, which act, and how many may be there."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistralrs.api.options.option import RUN, SERVE, option
from mistralrs.api.options.shell_options import ShellOptions

MAX_ADAPTERS = 1024
"""Slots for adapters, at most."""


def lora_option(**settings: Any) -> Any:
    """Returns the option ``--lora``, which may stand before and after a row."""
    return option(
        (),
        "--lora",
        metavar="NAME=SOURCE",
        help="A LoRA adapter: a folder, a GGUF file, or a hub repository as OWNER/NAME[/FOLDER]. SOURCE alone is named "
        "by its last part. May be repeated. A single one acts; of several none, until --adapter or a request says.",
        **settings,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFlags(ShellOptions):
    """The part of ``Options`` that is about adapters."""

    lora: tuple[str, ...] = lora_option(modes=RUN, separator=",")
    adapter: str | None = option(
        None,
        "--adapter",
        metavar="NAME[:W],...",
        modes=RUN,
        shown_default="those of a row, or the only one",
        help="The adapters that act where a request names none, with their weights; 'none': none.",
    )
    merge: bool | None = option(
        None,
        "--merge",
        "--no-merge",
        has_negation=True,
        modes=RUN,
        shown_default="where no other can act and the base is stored as floats",
        help="Merge the adapters that act into the weights at load.",
    )
    max_adapters: int | None = option(
        None,
        "--max-adapters",
        metavar="N",
        least=1,
        most=MAX_ADAPTERS,
        modes=RUN,
        shown_default="as many as there are, 8 at least with --allow-adapter-changes",
        help="Adapters that may act at once; others wait in their files.",
    )
    max_adapter_rank: int | None = option(
        None,
        "--max-adapter-rank",
        metavar="N",
        least=1,
        modes=RUN,
        shown_default="any",
        help="Refuse adapters of a higher rank.",
    )
    max_adapter_bytes: int | None = option(
        None,
        "--max-adapter-bytes",
        metavar="SIZE",
        is_size=True,
        least=1,
        modes=RUN,
        shown_default="any",
        help="Refuse adapters whose matrices are larger than this in their file.",
    )
    allow_adapter_changes: bool = option(
        False,
        "--allow-adapter-changes",
        modes=SERVE,
        help="Let clients load and unload adapters while serving, from --adapter-root alone.",
    )
    adapter_root: Path | None = option(
        None,
        "--adapter-root",
        metavar="FOLDER",
        modes=SERVE,
        help="The folder from which clients may load adapters.",
    )
