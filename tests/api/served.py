"""A served model without an engine: tiny tokenizers, real templates, a short context."""

from __future__ import annotations

from functools import cache

from mistralrs.api.served_model import ModelInfo, ServedModel
from mistralrs.api.serving.policy import Policy
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.tokenizer import Tokenizer
from tests.text.vocabularies import byte_level, sentence_piece

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
POLICY = Policy(model_name="org/tiny")
MAX_LEN = 300
HIDDEN = 4

INFO = ModelInfo(
    name="tiny",
    architecture="llama",
    quantization="F32",
    context_length=MAX_LEN,
    backend="cpu",
    threads=1,
    parameters=1,
    file_bytes=1,
    kv_bytes=1,
    load_s=0.0,
    unavailable_backends=(),
)


@cache
def byte_tokenizer() -> Tokenizer:
    """Returns a byte-level tokenizer without BOS and without a space in front."""
    return Tokenizer.from_gguf(byte_level())


@cache
def piece_tokenizer() -> Tokenizer:
    """Returns a SentencePiece tokenizer with BOS and a space in front of every text."""
    return Tokenizer.from_gguf(sentence_piece())


def served(template: str | None = CHATML, *, tokenizer: Tokenizer | None = None, max_len: int = MAX_LEN) -> ServedModel:
    """Returns a served model with this template and tokenizer."""
    tokenizer = tokenizer or byte_tokenizer()
    return ServedModel(
        info=INFO,
        tokenizer=tokenizer,
        template=None if template is None else ChatTemplate(template, bos="<s>", eos="</s>"),
        max_len=max_len,
        vocab_size=tokenizer.vocab_size,
        hidden_size=HIDDEN,
    )
