"""A real server with adapters, started as a user does, and its engine in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.serving import RunningServer

if TYPE_CHECKING:
    from tests.adapters.adapter_folders import AdapterFolders

SLOTS = 4


class AdapterServer(RunningServer):
    """Serves a tiny Llama with the adapters of these names while it is entered; clients may change them."""

    def __init__(self, folders: AdapterFolders, kv: Path, names: Sequence[str]) -> None:
        sources = [argument for name in names for argument in ("--lora", f"{name}={folders.root / name}")]
        changes = ["--allow-adapter-changes", "--adapter-root", str(folders.root), "--max-adapters", str(SLOTS)]
        engine = ["--threads", "1", "--max-seqs", "6", "--prefix-cache-n", "8", "--draft", "4", "--kv-dir", str(kv)]
        super().__init__(*sources, *changes, *engine, "--model-name", "tiny", "auto", str(folders.base))
