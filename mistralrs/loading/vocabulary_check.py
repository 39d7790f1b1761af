"""Compares a tokenizer's vocabulary with the rows of a model's embedding."""

from __future__ import annotations

import logging
from pathlib import Path

from mistralrs.errors import LoadError
from mistralrs.models.spec import DecoderSpec
from mistralrs.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def check_vocabulary(path: Path, tokenizer: Tokenizer, spec: DecoderSpec) -> None:
    """Raises ``LoadError`` if ordinary text could become tokens that have no row in the embedding.

    Added tokens may lack a row, such as the token for images in a model for text: they are never sampled, and a prompt
    with one is refused by name.
    """
    rows = spec.vocab_size
    if not 0 < rows < tokenizer.vocab_size:  # 0: there is no embedding, which a later check reports
        return
    num_text_tokens = tokenizer.num_text_tokens_beyond(rows)
    if num_text_tokens:
        raise LoadError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model knows {rows}; "
            f"{num_text_tokens} of the others are words or pieces of words",
            hint="the tokenizer belongs to another model",
        )
    if tokenizer.eos_ids and min(tokenizer.eos_ids) >= rows:
        logger.warning("the model has no embedding for the tokens that end an answer, so none ends before its limit")
