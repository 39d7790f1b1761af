"""The headers that report the differences of an answer from its request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from mistralrs.api.schemas.parameter_table import ignored_header
from mistralrs.api.serving.prepare import Prepared, PreparedEmbeddings

IGNORED = "x-mistralrs-ignored"
"""Parameters without an effect."""
TRUNCATED = "x-mistralrs-truncated"
"""Tokens that were cut from the beginning of prompts."""
MODEL = "x-mistralrs-model"
"""The model that answered, where another was asked for."""
WARNINGS = "x-mistralrs-warnings"
"""Sentences about the grammar, with a semicolon between two."""
MAX_WARNINGS = 1000
"""Characters of the warnings, at most."""


@dataclass(frozen=True, slots=True)
class AnswerHeaders:
    """The departures of one answer from its request."""

    ignored: tuple[str, ...] = ()
    truncated_tokens: int = 0
    other_model: str | None = None
    """The model that was asked for, if it is not the one that answers."""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, prepared: Prepared | PreparedEmbeddings) -> AnswerHeaders:
        warnings = prepared.warnings if isinstance(prepared, Prepared) else ()
        return cls(prepared.ignored, prepared.truncated_tokens, prepared.other_model, warnings)

    def headers(self, model_name: str) -> dict[str, str]:
        headers = {}
        if self.ignored:
            headers[IGNORED] = ignored_header(self.ignored)
        if self.truncated_tokens:
            headers[TRUNCATED] = str(self.truncated_tokens)
        if self.other_model is not None:
            headers[MODEL] = quote(model_name, safe="/:@+-._~ ")
        if self.warnings:
            headers[WARNINGS] = re.sub(r"[^ -~]", "?", "; ".join(self.warnings))[:MAX_WARNINGS]
        return headers
