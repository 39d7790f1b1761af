"""Where a model's tokenizer and chat template come from: what the user names, else the model's own file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistralrs.errors import LoadError
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """The user's choices, the first that is given wins: ``chat_template`` and ``tokenizer_json``, then the repository or
    folder ``tok_model_id``, then the model file."""

    chat_template: str | None = None
    """Jinja text, or a path that ends in .json (with a key ``chat_template``) or .jinja."""
    tokenizer_json: Path | None = None
    tok_model_id: str | None = None
    token: Callable[[], str | None] | None = None
    progress: Progress | None = None

    def tokenizer(self, metadata: Mapping[str, object]) -> Tokenizer:
        """Raises ``LoadError`` when the chosen one is missing or broken."""
        if self.tokenizer_json is None and self.tok_model_id is None:
            return Tokenizer.from_gguf(metadata)
        config = self._config("tokenizer_config.json")
        path = self.tokenizer_json or self._companion("tokenizer.json")
        if path is None:
            raise LoadError(
                f"{self.tok_model_id} has no tokenizer.json", hint="name one with --tokenizer-json, or leave out -t"
            )
        if not path.is_file():
            raise LoadError(f"{path} does not exist", hint="--tokenizer-json names a tokenizer.json")
        eos = [text] if (text := _token_text(config.get("eos_token"))) else []
        tokenizer = Tokenizer.from_json(path, bos=_token_text(config.get("bos_token")), eos=eos)
        more = self._config("generation_config.json").get("eos_token_id", [])
        ids = more if isinstance(more, list) else [more]
        if not all(type(token) is int for token in ids):
            raise LoadError(f"generation_config.json of {self.tok_model_id}: eos_token_id is {more!r}")
        return tokenizer.with_eos(ids)

    def template(self, own: str | None, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template to use; ``own`` is that of the model file. None: there is none.

        Raises ``LoadError`` when the chosen one is missing or does not compile.
        """
        if self.chat_template is not None:
            source: str | None = read_template(self.chat_template)
        else:
            source = self._companion_template() or own
        if not source:
            return None

        def text(token: int | None) -> str:
            return tokenizer.token_text(token) if token is not None else ""

        return ChatTemplate(source, bos=text(tokenizer.bos_id), eos=text(tokenizer.eos_id), unk=text(tokenizer.unk_id))

    def _companion_template(self) -> str | None:
        path = self._companion("chat_template.jinja")
        if path is not None:
            return path.read_text(encoding="utf-8")
        found = self._config("tokenizer_config.json").get("chat_template")
        if isinstance(found, list):  # several named ones
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if found is not None and not isinstance(found, str):
            raise LoadError(f"tokenizer_config.json of {self.tok_model_id}: chat_template is not a text")
        return found

    def _companion(self, name: str) -> Path | None:
        if self.tok_model_id is None:
            return None
        from mistralrs.loading.source import companion

        return companion(self.tok_model_id, name, token=self.token() if self.token else None, progress=self.progress)

    def _config(self, name: str) -> dict[str, Any]:
        path = self._companion(name)
        return _read_json(path) if path is not None else {}


def read_template(choice: str) -> str:
    """The Jinja text that ``--chat-template`` names or is."""
    if not choice.endswith((".json", ".jinja")):
        return choice
    path = Path(choice)
    if not path.is_file():
        raise LoadError(f"{choice} does not exist", hint="--chat-template takes a .json or .jinja file, or Jinja text")
    if choice.endswith(".jinja"):
        return path.read_text(encoding="utf-8")
    template = _read_json(path).get("chat_template")
    if not isinstance(template, str):
        raise LoadError(f"{choice}: there is no text under the key chat_template")
    return template


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} holds no JSON object")
    return value


def _token_text(value: object) -> str | None:
    """A token in `tokenizer_config.json`: a string, or an object with ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
