"""Reads a file of named hooks, code of the user that runs in the engine's process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mistralrs.engine.request_hooks import NamedHooks
from mistralrs.errors import LoadError, UsageError

PROCESSORS, RULES = "LOGITS_PROCESSORS", "STOPPING_RULES"
_MODULE = "mistralrs_plugin"
_HINT = 'it needs LOGITS_PROCESSORS = {"name": function}, or STOPPING_RULES, or both'


def load_plugin(path: Path) -> NamedHooks:
    """Runs the file and returns the hooks that it names. It runs with the rights of this process.

    Raises UsageError where there is no such file or it names no hooks, and LoadError where it fails.
    """
    if not path.is_file():
        raise UsageError(f"the plugin {path} is no file", hint="give --plugin a Python file")
    module = _run(path)
    processors, rules = _named(module, PROCESSORS, path), _named(module, RULES, path)
    if not processors and not rules:
        raise UsageError(f"the plugin {path} names no hooks", hint=_HINT)
    return NamedHooks(processors, rules)


def _run(path: Path) -> ModuleType:
    module = ModuleType(_MODULE)
    module.__file__ = str(path)
    sys.modules[_MODULE] = module  # dataclasses look their module up
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise LoadError(f"the plugin {path} failed: {type(error).__name__}: {error}", hint="mend it") from error
    return module


def _named(module: ModuleType, table: str, path: Path) -> Mapping[str, Any]:
    """Returns one of the file's tables; empty if it has none."""
    found = getattr(module, table, {})
    if not isinstance(found, Mapping):
        raise UsageError(f"{table} of the plugin {path} is no dict", hint=_HINT)
    for name, hook in found.items():
        if not isinstance(name, str) or not callable(hook):
            raise UsageError(f"{table} of the plugin {path} has {name!r}, which names no function", hint=_HINT)
    return dict(found)
