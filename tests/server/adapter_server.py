"""Real servers with adapters, started as a user does, with their engines in processes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.serving import RunningServer

if TYPE_CHECKING:
    from tests.adapters.adapter_folders import AdapterFolders

SLOTS = 4
AMPLE = "16M"
"""A KV cache of as many blocks as can be used."""
ENGINE = ("--threads", "1", "--max-seqs", "6")
REUSING = ("--prefix-cache-n", "8", "--draft", "4")


class AdapterServer(RunningServer):
    """Serves a tiny Llama with the adapters of these names while it is entered; clients may change them."""

    def __init__(
        self,
        folders: AdapterFolders,
        kv: Path,
        names: Sequence[str],
        *,
        kv_memory: str = AMPLE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        sources = [argument for name in names for argument in ("--lora", f"{name}={folders.root / name}")]
        changes = ["--allow-adapter-changes", "--adapter-root", str(folders.root), "--max-adapters", str(SLOTS)]
        memory = [*REUSING, "--kv-dir", str(kv), "--kv-memory", kv_memory]
        model = ["--model-name", "tiny", "auto", str(folders.base)]
        super().__init__(*sources, *changes, *ENGINE, *memory, *model, environment=environment)


class XLoraServer(RunningServer):
    """Serves the tiny model of a folder with an X-LoRA. ``kv`` None: without a KV cache."""

    def __init__(
        self,
        base: Path,
        xlora: Path,
        kv: Path | None,
        *,
        kv_memory: str = AMPLE,
        non_granular: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        memory = ["--kv-memory", kv_memory, *(["--no-kv-cache"] if kv is None else [*REUSING, "--kv-dir", str(kv)])]
        model = ["--model-name", "tiny", "auto", str(base), "--xlora", str(xlora)]
        index = [] if non_granular is None else ["--tgt-non-granular-index", str(non_granular)]
        super().__init__(*ENGINE, *memory, *model, *index, environment=environment)
