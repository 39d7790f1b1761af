"""The user's own prompts: Markdown files with variables in doubled braces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import UsageError
from mistralrs.files import read_text
from mistralrs.user_dirs import user_folder
from mistralrs_cli.terminal.output import clean_line

REST = "input"
"""The variable that takes the text after the named values."""
_FILE_BYTES = 1 << 20
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][\w-]*)\s*\}\}")
_GIVEN = re.compile(r"\s*([A-Za-z_][\w-]*)=(?:\"([^\"]*)\"|(\S*))")


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt by its name."""

    name: str
    text: str

    @property
    def variables(self) -> tuple[str, ...]:
        """Returns the variables in the order of their first use."""
        return tuple(dict.fromkeys(_VARIABLE.findall(self.text)))

    @property
    def usage(self) -> str:
        """Returns how it is called."""
        named = [f"{each}=..." for each in self.variables if each != REST]
        return " ".join(["/p", self.name, *named, *(["TEXT"] if REST in self.variables else [])])

    def fill(self, argument: str) -> str:
        """Returns the prompt with the values ``NAME=VALUE`` that begin the argument; the text after them is ``input``,
        or follows the prompt that does not name it. Raises ``UsageError`` for a variable without a value."""
        values, rest = _given(argument, self.variables)
        text = self.text
        if REST in self.variables and rest:
            values |= {REST: rest}
        elif rest:
            text = f"{text.rstrip()}\n\n{rest}"
        missing = [each for each in self.variables if each not in values]
        if missing:
            raise UsageError(f"/p {self.name}: no value for {', '.join(missing)}", hint=self.usage)
        return _VARIABLE.sub(lambda match: values.get(match[1], match[0]), text).strip()


def prompts_folder() -> Path | None:
    """Returns the folder of prompts; it need not exist. None: the user has no home folder."""
    folder = user_folder("XDG_CONFIG_HOME", ".config")
    return None if folder is None else folder / "prompts"


def names() -> list[str]:
    """Returns the names of all prompts, sorted."""
    folder = prompts_folder()
    if folder is None or not folder.is_dir():
        return []
    return sorted(each.stem for each in folder.glob("*.md") if clean_line(each.stem) == each.stem)


def load(name: str) -> PromptFile:
    """Returns the prompt of a name. Raises ``UsageError`` if there is none, and ``LoadError`` if it cannot be read."""
    folder = prompts_folder()
    if folder is None or name not in names():
        known = ", ".join(names())
        hint = f"known are {known}" if known else f"write {folder or '~/.config/mistralrs/prompts'}/NAME.md"
        raise UsageError(f"there is no prompt {clean_line(name)}", hint=hint)
    return PromptFile(name, read_text(folder / f"{name}.md", limit=_FILE_BYTES, hint="write it anew"))


def _given(argument: str, variables: tuple[str, ...]) -> tuple[dict[str, str], str]:
    values: dict[str, str] = {}
    place = 0
    while (match := _GIVEN.match(argument, place)) and match[1] in variables and match[1] not in values:
        values[match[1]] = match[3] if match[2] is None else match[2]
        place = match.end()
    return values, argument[place:].strip()
