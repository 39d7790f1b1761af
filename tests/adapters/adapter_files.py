"""Small JSON files of adapters, without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_json(path: Path, content: object) -> Path:
    """Writes ``content`` and returns ``path``; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_adapters(
    folder: Path, targets: Mapping[str, Sequence[str] | str], *, base: str | None = "owner/base"
) -> Path:
    """Writes the `adapter_config.json` of several adapters, each in a folder of its name."""
    for name, modules in targets.items():
        write_json(
            folder / name / "adapter_config.json",
            {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4, "target_modules": modules},
        )
    return folder


def xlora_content(**settings: object) -> dict[str, object]:
    """The content of an `xlora_config.json` of two adapters."""
    return {"hidden_size": 8, "base_model_id": "owner/base", "adapters": ["math", "biology"], **settings}
