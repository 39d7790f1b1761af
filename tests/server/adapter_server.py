"""A real server with adapters, in a process of its own, and its engine in another.

Run with a model's folder, a folder of adapters, the names of those that are loaded, and a folder for KV.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mistralrs.api.adapter_options import AdapterOptions, AdapterSource
from mistralrs.api.local_model import LoadOptions, ModelSource
from mistralrs.server.run import serve
from mistralrs.server.settings import ServerSettings
from tests.serving import RunningServer

if TYPE_CHECKING:
    from tests.adapters.adapter_folders import AdapterFolders

SLOTS = 4


class AdapterServer(RunningServer):
    """Serves a tiny Llama with the adapters of these names while it is entered."""

    def __init__(self, folders: AdapterFolders, kv: Path, names: Sequence[str]) -> None:
        super().__init__()
        arguments = [str(folders.base), str(folders.root), ",".join(names), str(kv)]
        self._command = [sys.executable, "-m", "tests.server.adapter_server", *arguments]


def main() -> int:
    base, root, names, kv = sys.argv[1:]
    sources = tuple(AdapterSource(name, str(Path(root) / name)) for name in names.split(","))
    options = LoadOptions(
        threads=1,
        max_seqs=6,
        prefix_cache_n=8,
        kv_dir=Path(kv),
        max_draft=4,
        adapters=AdapterOptions(sources, max_adapters=SLOTS, root=Path(root)),
    )
    return serve(ModelSource(None, Path(base), None, None), options, ServerSettings(port=0, model_name="tiny"))


if __name__ == "__main__":
    sys.exit(main())
