"""Completes the line at Tab: commands, their arguments, and paths after ``@``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands.suggestions import Suggestion, paths

_REFERENCE = re.compile(r"(?:^|\s)@(\"?)([^\s\"]*|(?<=\")[^\"]*)$")


class InputCompleter(Completer):
    """Suggests what the text before the cursor may become."""

    def __init__(self, chat: Chat, suggest_command: Callable[[Chat, str], Iterable[Suggestion] | None]) -> None:
        """``suggest_command`` returns the whole lines that a command may become; None: the line is no command."""
        self._chat = chat
        self._suggest_command = suggest_command

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yields the completions of the text before the cursor."""
        text = document.text_before_cursor
        found = self._suggest_command(self._chat, text) if "\n" not in text else None
        if found is not None:
            for each in found:
                yield Completion(each.text, start_position=-len(text), display=each.shown)
            return
        reference = _REFERENCE.search(text)
        if reference is None:
            return
        quote, typed = reference.groups()
        for each in paths(self._chat, typed):
            if quote or " " in each.text:
                end = "" if each.text.endswith("/") else '"'
                written = f'"{each.text}{end}'
            else:
                written = each.text
            yield Completion(written, start_position=-len(quote + typed), display=each.shown)
