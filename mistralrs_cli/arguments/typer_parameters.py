"""Makes Typer's parameters from declared options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Set
from dataclasses import fields
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from mistralrs.api.options.declarations import Options, types
from mistralrs.api.options.option import Option
from mistralrs.api.options.values import without_none


def parameters(
    options: type, *, shown_defaults: Mapping[str, str] | None = None, required: Set[str] = frozenset()
) -> list[inspect.Parameter]:
    """Returns the fields of a class of options after the subcommand as parameters that Typer reads. None: an option
    that may be repeated was not typed.

    ``shown_defaults``: the text of defaults in help, by field; ``required``: fields that help marks as required.
    """
    hints = get_type_hints(options)
    found = []
    for each in fields(options):
        declared: Option = each.metadata["declaration"]
        shown = (shown_defaults or {}).get(each.name, declared.shown_default)
        help_text = f"{declared.help} Required." if each.name in required else declared.help
        hint = hints[each.name]
        info = _info(declared, hint, shown, help_text)
        if get_origin(hint) is tuple:
            found.append(_parameter(each.name, Annotated[list[str] | None, info], None))
            continue
        default = inspect.Parameter.empty if each.default is ... else each.default
        found.append(_parameter(each.name, Annotated[hint, info], default))
    return found


def global_parameters(callbacks: Mapping[str, Callable[[Any], Any]]) -> list[inspect.Parameter]:
    """Returns the options before the subcommand as parameters that Typer reads; None or False: not typed.

    ``callbacks``: the functions of options that act at once, by field.
    """
    found = []
    for each in fields(Options):
        declared: Option = each.metadata["declaration"]
        kind = without_none(types()[each.name])
        shown = declared.shown_default or shown_default(each.default)
        info = _info(declared, kind, shown, declared.help)
        if each.name in callbacks:
            info.callback, info.is_eager = callbacks[each.name], True
        if kind is bool and not declared.has_negation:
            found.append(_parameter(each.name, Annotated[bool, info], False))
            continue
        typed: Any = list[str] if get_origin(kind) is tuple else str if declared.is_size else kind
        found.append(_parameter(each.name, Annotated[typed | None, info], None))
    return found


def shown_default(default: object) -> str | None:
    """Returns the text of help for a default without one of its own; None: no text."""
    if default is None or isinstance(default, bool) or default == ():
        return None
    return f"{default:g}" if isinstance(default, float) else str(default)


def _info(declared: Option, hint: Any, shown: str | None, help_text: str) -> Any:
    """Returns the rest of the declaration as Typer's arguments."""
    settings: dict[str, Any] = {"metavar": declared.metavar, "help": help_text}
    if shown is not None:
        settings["show_default"] = shown
    if not declared.flags:
        return typer.Argument(**settings)
    if without_none(hint) is int and not declared.is_size and declared.shows_range:
        settings |= {"min": _whole(declared.least), "max": _whole(declared.most)}
    if declared.has_negation:
        return typer.Option("/".join(declared.flags), **settings)
    return typer.Option(*declared.flags, **settings)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _parameter(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
