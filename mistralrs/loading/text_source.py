"""Chooses a model's tokenizer and chat template: those that the user names, or else the model's own files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistralrs.errors import LoadError
from mistralrs.files import TEMPLATE_BYTES, read_json, read_text
from mistralrs.progress import Progress
from mistralrs.text.builtin_templates import builtin_names, builtin_template
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.response.response_template import ResponseTemplate
from mistralrs.text.response.shipped_templates import response_template_of
from mistralrs.text.tokenizer import Tokenizer
from mistralrs.text.tokenizer_config import TokenizerConfig, read_tokenizer_config

_logger = logging.getLogger(__name__)
_TEMPLATES = "--chat-template takes a .jinja file, a .json file with a text under chat_template, or Jinja text"
_REPAIR = "repair the file, or fetch it again"


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    """A template's Jinja source. ``bos`` and ``eos`` are the texts of these tokens; None: the tokenizer's."""

    source: str
    bos: str | None = None
    eos: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """The user's choices in order of priority: ``chat_template`` and ``tokenizer_json``, then the repository or folder
    ``tok_model_id``, then the model's own file or folder."""

    chat_template: str | None = None
    """Jinja source, a path that ends in .json (with a key ``chat_template``) or .jinja, or a shipped template's
    name."""
    tokenizer_json: Path | None = None
    tok_model_id: str | None = None
    token: Callable[[], str | None] | None = None
    progress: Progress | None = None

    @property
    def own_tokenizer(self) -> bool:
        """Returns whether the tokenizer is the model's own."""
        return self.tokenizer_json is None and self.tok_model_id is None

    def tokenizer(self, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer for a model in one file with a vocabulary. Raises ``LoadError`` if the chosen tokenizer is
        missing or broken."""
        if self.own_tokenizer:
            return Tokenizer.from_gguf(metadata)
        return self._tokenizer(self._place(self.tok_model_id), config_json=False)

    def template(self, own: str | None, tokenizer: Tokenizer, *, builtin: str | None = None) -> ChatTemplate | None:
        """The template to use, or None. ``own`` is the template of the model file; ``builtin`` names the shipped
        template to use if there is no other.

        Raises ``LoadError`` if the chosen template is missing or does not compile.
        """
        if self.chat_template is not None:
            choice = choose_template(self.chat_template)
        else:
            source = (
                self._place(self.tok_model_id).template() or own or (builtin_template(builtin) if builtin else None)
            )
            if not source:
                return None
            choice = TemplateChoice(source)

        def text(given: str | None, token: int | None) -> str:
            return given if given is not None else tokenizer.token_text(token) if token is not None else ""

        return ChatTemplate(
            choice.source.removeprefix("\ufeff"),  # a byte-order mark from a file
            bos=text(choice.bos, tokenizer.bos_id),
            eos=text(choice.eos, tokenizer.eos_id),
            unk=text(None, tokenizer.unk_id),
        )

    def for_model(self, place: str, *, builtin: str | None = None) -> tuple[Tokenizer, ChatTemplate | None]:
        """The tokenizer and template for a model in a folder or hub repository (``@revision`` allowed).

        The tokenizer is `tokenizer.json` or else `tokenizer.model`, with the settings of `tokenizer_config.json`,
        `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and `config.json`. ``builtin`` is as
        for ``template``. Raises ``LoadError`` if a file is missing or broken.
        """
        named = self._place(self.tok_model_id)
        own = self._place(place)
        tokenizer = self._tokenizer(named if self.tok_model_id else own, config_json=True)
        return tokenizer, self.template(own.template(), tokenizer, builtin=builtin)

    def responses(self, template: ChatTemplate | None, *, place: str | None = None) -> ResponseTemplate | None:
        """The template of the model's answers: that of its repository or folder (``place``, if it has one), or else a
        shipped one that fits the chat template; None if there is none.

        One that is broken or not supported is named in a warning and passed over, since the model can answer without.
        """
        declared = self._place(self.tok_model_id or place).response_template()
        source = template.source if template is not None else ""
        try:
            return response_template_of(source, declared)
        except LoadError as error:
            _logger.warning("%s: %s; it is passed over (%s)", self.tok_model_id or place, error.message, error.hint)
            return response_template_of(source, None)

    def _tokenizer(self, place: _TextFiles, *, config_json: bool) -> Tokenizer:
        path = self.tokenizer_json or place.file("tokenizer.json")
        if path is not None and not path.exists():
            raise LoadError(f"{path} does not exist", hint="--tokenizer-json names a tokenizer.json")
        ends = place.end_ids("generation_config.json") + (place.end_ids("config.json") if config_json else [])
        if path is None:
            model = place.file("tokenizer.model")
            if model is None:
                raise LoadError(
                    f"{place.name} has no tokenizer.json and no tokenizer.model",
                    hint="name a tokenizer.json with --tokenizer-json",
                )
            return Tokenizer.from_model(model, place.tokenizer_config(added_tokens=True)).with_eos(ends)
        config = place.tokenizer_config(added_tokens=False)
        eos: list[str | int] = [config.eos] if config.eos else [*ends[:1]]
        return Tokenizer.from_json(path, bos=config.bos, eos=eos, add_bos=config.add_bos, lenient=True).with_eos(ends)

    def _place(self, name: str | None) -> _TextFiles:
        return _TextFiles(name, self.token, self.progress)


@dataclass(frozen=True, slots=True)
class _TextFiles:
    """The tokenizer's files in a folder or hub repository; with ``name`` None there are none."""

    name: str | None
    token: Callable[[], str | None] | None
    progress: Progress | None

    def file(self, name: str) -> Path | None:
        if self.name is None:
            return None
        from mistralrs.loading.hub_files import companion

        return companion(self.name, name, token=self.token() if self.token else None, progress=self.progress)

    def json(self, name: str) -> dict[str, Any]:
        path = self.file(name)
        return read_json(path, hint=_REPAIR) if path is not None else {}

    def tokenizer_config(self, *, added_tokens: bool) -> TokenizerConfig:
        """The settings of the tokenizer. ``added_tokens``: reads these files too, whose content a `tokenizer.json`
        has."""
        config = self.json("tokenizer_config.json")
        # The older files repeat the content of this one, and each may need a request.
        specials = {} if "eos_token" in config and not added_tokens else self.json("special_tokens_map.json")
        added = self.json("added_tokens.json") if added_tokens else {}
        return read_tokenizer_config(config, special_tokens_map=specials, added_tokens=added)

    def end_ids(self, name: str) -> list[int]:
        """The ids under ``eos_token_id`` in a file: none, one or several."""
        fields = self.json(name)
        value = fields.get("eos_token_id")
        if value is None and isinstance(fields.get("text_config"), dict):  # a multimodal checkpoint
            value = fields["text_config"].get("eos_token_id")
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise LoadError(f"{name} of {self.name}: eos_token_id is {value!r}, expected token ids", hint=_REPAIR)
        return ids

    def template(self) -> str | None:
        """The template in `chat_template.jinja`, or in `tokenizer_config.json`, which has one or several with names, or
        in the `chat_template.json` of multimodal checkpoints; None if there is none."""
        path = self.file("chat_template.jinja")
        if path is not None:
            return _read_template(path)
        place = "tokenizer_config.json"
        found = self.json(place).get("chat_template")
        if found is None:
            place = "chat_template.json"
            found = self.json(place).get("chat_template")
        if isinstance(found, list):
            found = self._default_of(found)
        if found is not None and not isinstance(found, str):
            raise LoadError(f"{place} of {self.name}: chat_template is not a text", hint=_REPAIR)
        return found

    def response_template(self) -> Any:
        """The declaration of the model's answers in `tokenizer_config.json`; None if there is none."""
        return self.json("tokenizer_config.json").get("response_template")

    def _default_of(self, entries: list[object]) -> object:
        named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
        if "default" in named or len(named) < 2:
            return named.get("default", next(iter(named.values()), None))
        names = ", ".join(sorted(map(str, named)))
        _logger.warning("%s has chat templates named %s and none named default; none is used", self.name, names)
        return None


def choose_template(choice: str) -> TemplateChoice:
    """The template that ``--chat-template`` names or contains; a file takes priority over a shipped template. Raises
    ``LoadError`` if there is none."""
    if choice.endswith(".json"):
        return _template_file(Path(choice))
    if choice.endswith(".jinja"):
        return TemplateChoice(_read_template(Path(choice)))
    if "{" in choice:  # every template has one
        return TemplateChoice(choice)
    if os.path.isfile(choice):
        return TemplateChoice(_read_template(Path(choice)))
    if choice in builtin_names():
        return TemplateChoice(builtin_template(choice))
    raise LoadError(
        f"{choice[:80]!r} is no file, no Jinja text and no template that ships",
        hint=f"--chat-template takes a .json or .jinja file, Jinja text, or one of {', '.join(builtin_names())}",
    )


def _template_file(path: Path) -> TemplateChoice:
    if not path.exists():
        raise LoadError(f"{path} does not exist", hint=_TEMPLATES)
    fields: dict[str, Any] = read_json(path, hint=_REPAIR)
    source = fields.get("chat_template")
    if not isinstance(source, str):
        raise LoadError(f"{path}: there is no text under the key chat_template", hint=_TEMPLATES)
    for key in ("bos_token", "eos_token"):
        if not isinstance(fields.get(key), str | None):
            raise LoadError(f"{path}: {key} is no text", hint=_TEMPLATES)
    return TemplateChoice(source, bos=fields.get("bos_token"), eos=fields.get("eos_token"))


def _read_template(path: Path) -> str:
    if not path.exists():
        raise LoadError(f"{path} does not exist", hint=_TEMPLATES)
    return read_text(path, limit=TEMPLATE_BYTES, hint=_REPAIR)
