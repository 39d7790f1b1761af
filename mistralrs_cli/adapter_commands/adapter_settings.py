"""The options of adapters that count for one command, from the flags, the environment and the config file."""

from __future__ import annotations

from dataclasses import replace

from mistralrs.api.options.declarations import DEFAULTS, Options
from mistralrs.api.options.resolve import Origin, ResolvedOptions
from mistralrs.api.selectors.model_choice import ModelChoice
from mistralrs.api.selectors.named_adapters import xlora_of

_OF_LORA = ("lora", "adapter", "merge", "max_adapters", "allow_adapter_changes", "adapter_root")
_OF_ADAPTERS = ("adapter", "merge", "max_adapters", "max_adapter_rank", "max_adapter_bytes")


def adapter_settings(options: ResolvedOptions, choice: ModelChoice | None) -> Options:
    """Returns the options without those of the environment and the config file that mean nothing in this command.

    These are meant for other calls too: they count where there are adapters of their kind, but flags always count, so
    that a wrong one is refused.
    """
    values = options.values
    outside: list[str] = []
    if xlora_of(choice) is not None:
        outside += _OF_LORA
    elif not (values.lora or values.allow_adapter_changes or (choice and (choice.lora or choice.selector.adapter))):
        outside += _OF_ADAPTERS
    if not values.allow_adapter_changes:
        outside.append("adapter_root")
    left_out = {name: getattr(DEFAULTS, name) for name in outside if options.origin(name) is not Origin.FLAG}
    return replace(values, **left_out)
