"""``Which``: every selector of the table as a class of its own, in whose fields a Python caller names a model.

The classes are made from the table, as is ``which.pyi``, which says the same to type checkers; ``model_choice`` gives
the fields their meaning.
"""

from __future__ import annotations

from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any, ClassVar

from mistralrs.api.selectors.model_choice import ModelChoice
from mistralrs.api.selectors.model_selector import SELECTORS, ModelSelector, required_of
from mistralrs.api.selectors.which_fields import class_name, described, fields_of
from mistralrs.errors import UsageError


class Which:
    """The model that a ``Runner`` is to load: ``Which.MistralGGUF()``, ``Which.Auto("model.gguf")``.

    Each selector is a class of its own. A field that is left out or None has the selector's default. A missing field
    without a default and a field of a wrong type raise TypeError; a number out of its range raises ``UsageError``.
    """

    row: ClassVar[ModelSelector]

    def __init__(self) -> None:
        raise TypeError("Which itself is no model: choose a row of it, such as Which.Auto(source)")

    def __post_init__(self) -> None:
        needed = required_of(self.row)
        for name, kind in fields_of(self.row).items():
            where = f"Which.{type(self).__name__}: {name}"
            value = getattr(self, name)
            is_known = isinstance(value, kind.types) and not isinstance(value, bool)
            if value is None:
                if name in needed:
                    raise TypeError(f"{where} must be given")
            elif not is_known:
                raise TypeError(f"{where} must be {kind.annotation}, not {type(value).__name__}")
            elif kind.least is not None and value < kind.least:
                raise UsageError(f"{where} is {value}", hint=f"it must be at least {kind.least}")

    def choice(self) -> ModelChoice:
        """Returns the selector and the fields that name its weights."""
        meant = {each.name for each in fields(ModelChoice)}
        given = {name: getattr(self, name) for name in fields_of(self.row) if name in meant}
        for name in ("tokenizer_json", "order"):
            if given.get(name) is not None:
                given[name] = Path(given[name])
        return ModelChoice(selector=self.row, **given)


def _class_of(row: ModelSelector) -> type[Which]:
    name = class_name(row)
    members: dict[str, Any] = {"row": row, "__doc__": described(row), "__qualname__": f"Which.{name}"}
    made = make_dataclass(
        name,
        [(field, kind.annotation, None) for field, kind in fields_of(row).items()],
        bases=(Which,),
        namespace=members,
        frozen=True,
    )
    made.__module__ = __name__
    return made


for _row in SELECTORS.values():
    setattr(Which, class_name(_row), _class_of(_row))
