"""Faults that servers are started with on purpose: schedules that do not find them would prove nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.serving import ROOT

LORA_FAULTS: Mapping[str, str] = {
    "KV of all adapters is taken for the base's": """
import mistralrs.engine.sequence
mistralrs.engine.sequence.hash_adapters = lambda parent, entries: parent
""",
    "weights of adapters do not count for their KV": """
import mistralrs.engine.sequence
from mistralrs.engine.kv.block_pool import hash_adapters
mistralrs.engine.sequence.hash_adapters = lambda parent, entries: hash_adapters(
    parent, [(digest, 1.0, first) for digest, _, first in entries]
)
""",
}
XLORA_FAULTS: Mapping[str, str] = {
    "KV of answers with kept scalings is shared": """
import mistralrs.engine.config
EngineConfig = mistralrs.engine.config.EngineConfig
made = EngineConfig.__init__
def without(self, *arguments, **fields):
    made(self, *arguments, **{**fields, "shared_answer_tokens": None})
EngineConfig.__init__ = without
""",
    "KV of all X-LoRAs is taken for one's": """
import mistralrs.adapters.xlora.xlora
mistralrs.adapters.xlora.xlora._digest = lambda *facts: bytes(16)
""",
}
"""Statements that a server's processes run before anything else."""


def faulty(folder: Path, fault: str) -> dict[str, str]:
    """Returns the environment in which every interpreter runs the statements ``fault`` at its start.

    ``folder``: an empty folder for them.
    """
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(fault)
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT, ROOT / "kernels")))}
