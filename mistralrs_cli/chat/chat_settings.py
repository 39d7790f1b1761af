"""The settings of a chat that ``/set`` changes: their names, ranges and values, and where each value came from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mistralrs.api.options.declarations import DECLARED, types
from mistralrs.api.options.values import check_range, check_value, parse_text, without_none
from mistralrs.api.schemas.sentinels import MAX_INT, max_tokens_of, repeat_last_n_from, seed_of, top_k_of
from mistralrs.engine.admission import RANGES
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import UsageError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs_cli.printing.thoughts import Think
from mistralrs_cli.terminal.output import clean_line

ContextPolicy = Literal["full", "slide", "compact"]
"""What happens when the context is full: a message is refused, the oldest turns are dropped, or they are summarized."""
RESET = "default"
"""The word that gives a setting the value with which the chat began."""


@dataclass(slots=True)
class ChatSettings:
    """The values that the next turn is answered with."""

    sampling: SamplingParams
    truncate: bool = False
    grammar: GrammarText | None = None
    think: Think | None = None
    stats: bool = False
    context: ContextPolicy = "full"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting by its name. A field of ``SamplingParams``, or of ``ChatSettings`` where ``is_sampling`` is False."""

    name: str
    field: str
    parse: Callable[[str], Any]
    """Returns the value that a typed text means. Raises ``UsageError``."""
    show: Callable[[Any], str] = str
    words: tuple[str, ...] = ()
    """The texts that it may be; empty: numbers or any text."""
    option: str = ""
    """The option that sets it at the start; empty: none does."""
    is_sampling: bool = True

    def value(self, settings: ChatSettings) -> Any:
        """Returns the value now."""
        return getattr(settings.sampling if self.is_sampling else settings, self.field)

    def put(self, settings: ChatSettings, value: Any) -> None:
        """Changes the value."""
        if self.is_sampling:
            settings.sampling = replace(settings.sampling, **{self.field: value})
        else:
            setattr(settings, self.field, value)


def _of_option(
    name: str, field: str, convert: Callable[[Any], Any] = lambda value: value, show: Callable[[Any], str] = str
) -> Setting:
    """Returns the setting of an option: it has the option's range and the option's errors."""
    option = name.replace("-", "_")

    def parse(text: str) -> Any:
        declared, hint = DECLARED[option], without_none(types()[option])
        written = f"/set {name}"
        return convert(check_value(declared, hint, parse_text(declared, hint, text, written=written), written=written))

    return Setting(name, field, parse, show, option=option)


def _of_range(name: str) -> Setting:
    """Returns the setting of a sampling parameter that no option has."""
    field = name.replace("-", "_")
    allowed = RANGES[field]

    def parse(text: str) -> float:
        value = _number(f"/set {name}", text)
        check_range(f"/set {name}", value, allowed.least, allowed.most)
        return value

    return Setting(name, field, parse)


def _of_words(
    name: str, *known: str, convert: Mapping[str, Any], show: Callable[[Any], str], option: str = ""
) -> Setting:
    def parse(text: str) -> Any:
        if text not in known:
            raise UsageError(f"/set {name} {clean_line(text)}: no such value", hint=f"one of {', '.join(known)}")
        return convert[text]

    return Setting(name, name, parse, show, words=known, option=option or name, is_sampling=False)


def _number(written: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{written} {clean_line(text)[:32]}: not a number", hint="write a number") from None


def _last_n(text: str) -> int:
    value = _number("/set repeat-last-n", text)
    check_range("/set repeat-last-n", value, -1, MAX_INT)
    if value != int(value):
        raise UsageError("/set repeat-last-n: not a whole number", hint="write a whole number")
    return repeat_last_n_from(int(value))


def _stop(text: str) -> tuple[str, ...]:
    return () if text == '""' else (text.replace("\\n", "\n"),)


_SWITCH = {"on": True, "off": False}
_THINK: Mapping[str, Any] = {"on": "on", "off": "off", "hide": "hide", "auto": None}
SETTINGS: Mapping[str, Setting] = {
    each.name: each
    for each in (
        _of_option("temperature", "temperature"),
        _of_option("top-k", "top_k", top_k_of),
        _of_option("top-p", "top_p"),
        _of_option("min-p", "min_p"),
        _of_range("typical-p"),
        _of_option("repeat-penalty", "repetition_penalty"),
        Setting("repeat-last-n", "repeat_last_n", _last_n, lambda value: "-1" if value == MAX_INT else str(value)),
        _of_option("frequency-penalty", "frequency_penalty"),
        _of_option("presence-penalty", "presence_penalty"),
        _of_range("dry-multiplier"),
        _of_range("dry-base"),
        _of_range("xtc-probability"),
        _of_range("xtc-threshold"),
        _of_option("seed", "seed", seed_of),
        _of_option("max-tokens", "max_tokens", max_tokens_of, lambda value: "-1" if value is None else str(value)),
        Setting("stop", "stop", _stop, lambda value: " ".join(map(repr, value)) or '""', option="stop"),
        _of_words("think", "on", "off", "hide", "auto", convert=_THINK, show=lambda value: value or "auto"),
        _of_words(
            "context",
            *get_args(ContextPolicy),
            convert={each: each for each in get_args(ContextPolicy)},
            show=str,
            option="context_policy",
        ),
        _of_words("stats", "on", "off", convert=_SWITCH, show=lambda value: "on" if value else "off"),
    )
}
"""The settings by their names, which are those of the options."""


def find_setting(name: str) -> Setting:
    """Returns the setting of a name, in which underscores may stand for dashes. Raises ``UsageError``."""
    wanted = name.replace("_", "-")
    if wanted in SETTINGS:
        return SETTINGS[wanted]
    nearest = difflib.get_close_matches(wanted, SETTINGS, n=1)
    raise UsageError(
        f"there is no setting {clean_line(name)}",
        hint=f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(SETTINGS)}",
    )


class SettingOrigins:
    """Remembers where each value came from, and the values with which the chat began."""

    def __init__(self, settings: ChatSettings, written: Mapping[str, str]) -> None:
        """``written``: the options that were given, as the user wrote them."""
        self._begun = replace(settings)
        self._written = written
        self._changed = set[str]()
        self._without_model = replace(settings)
        self._own = set[str]()

    def change(self, settings: ChatSettings, setting: Setting, *, text: str) -> None:
        """Gives a setting the value that ``text`` means. Raises ``UsageError``."""
        if text == RESET:
            setting.put(settings, setting.value(self._begun))
            self._changed.discard(setting.name)
        else:
            setting.put(settings, setting.parse(text))
            self._changed.add(setting.name)

    def use_model(self, settings: ChatSettings, own: Mapping[str, float]) -> None:
        """Puts the values that a model's makers recommend in place of the defaults and of those of the model before.

        Values that the user gave stay. ``own``: by fields of ``SamplingParams``.
        """
        before, self._own = self._own, set()
        for each in SETTINGS.values():
            if not each.is_sampling or each.option in self._written:
                continue
            if each.field in own:
                self._own.add(each.name)
            elif each.name not in before:
                continue
            value = own.get(each.field, each.value(self._without_model))
            each.put(self._begun, value)
            if each.name not in self._changed:
                each.put(settings, value)

    def is_changed(self, name: str) -> bool:
        """Returns whether ``/set`` gave the value."""
        return name in self._changed

    def of(self, setting: Setting) -> str:
        """Returns where the value came from."""
        if setting.name in self._changed:
            return "/set"
        return self._written.get(setting.option, "the model's own" if setting.name in self._own else "default")
