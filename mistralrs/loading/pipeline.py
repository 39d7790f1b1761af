"""From a GGUF file to a model that runs: spec, tokenizer, template, placement, memory plan."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import LoadError
from mistralrs.loading.gguf import GgufFile
from mistralrs.loading.gguf_parts import GgufParts, read_spec
from mistralrs.loading.text_source import TextSource
from mistralrs.models.decoder import PRECISIONS, Decoder, Limits, build_decoder
from mistralrs.models.registry import ARCHITECTURES
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend
from mistralrs.ops.memory import available_bytes
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

BLOCK_SIZE = 16
_LOGIT_ROWS = 64
"""Rows of logits that a step can return at least; measuring tools ask for many."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model and what its file says of it."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate | None
    spec: DecoderSpec
    limits: Limits
    architecture: str
    name: str
    quantization: str
    file_bytes: int
    parameters: int
    max_model_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What the caller decides."""

    max_seqs: int
    max_batch_tokens: int
    precision: str = "default"
    """A row of ``models.decoder.PRECISIONS``."""
    text: TextSource = TextSource()
    """Where tokenizer and template come from, if not from the file."""


def load_gguf(
    path: Path,
    backend: Backend,
    plan: LoadPlan,
    *,
    architecture: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Model:
    """Loads a GGUF file. ``architecture``: what the file must say; None: anything that is supported.

    Raises ``LoadError`` and ``FormatError``; nothing large is allocated before the whole file has been checked.
    """
    with GgufFile.open(path) as file:
        found = file.require("general.architecture", str)
        if found not in ARCHITECTURES:
            raise LoadError(
                f"{path} holds the architecture {found!r}, which is not supported yet",
                hint=f"supported: {', '.join(sorted(ARCHITECTURES))}",
            )
        if architecture is not None and architecture != found:
            raise LoadError(
                f"{path} holds the architecture {found!r}, not {architecture!r}",
                hint=f"this command works: mistralrs -i gguf -f {path}",
            )
        spec = read_spec(file, ARCHITECTURES[found])
        tokenizer = plan.text.tokenizer(file.metadata)
        if tokenizer.vocab_size > spec.vocab_size:
            raise LoadError(
                f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model knows {spec.vocab_size}",
                hint="the tokenizer belongs to another model",
            )
        template = plan.text.template(file.get("tokenizer.chat_template", str, default=None), tokenizer)
        weights_progress = (lambda done, total: progress("weights", done, total)) if progress else None
        parts = GgufParts(file, ARCHITECTURES[found], spec, backend, progress=weights_progress)
        limits = _plan_memory(spec, plan, parts.placed_bytes)
        backend.reserve(parts.placed_bytes)
        decoder = build_decoder(spec, parts, backend, limits, terms=PRECISIONS[plan.precision])
        types = [tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) == 2]
        return Model(
            decoder=decoder,
            tokenizer=tokenizer,
            template=template,
            spec=spec,
            limits=limits,
            architecture=found,
            name=file.get("general.name", str, default=path.stem),
            quantization=max(sorted(set(types)), key=types.count),
            file_bytes=path.stat().st_size,
            parameters=sum(_count(tensor.shape) for tensor in file.tensors.values()),
            max_model_len=limits.max_blocks * BLOCK_SIZE,
        )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _plan_memory(spec: DecoderSpec, plan: LoadPlan, weights: int) -> Limits:
    """The KV cache gets at most half of what the weights leave; it is touched as it fills.

    Raises ``LoadError`` when the weights do not fit.
    """
    left = available_bytes() - weights
    token_bytes = spec.num_layers * spec.kv_heads * 2 * (-(-spec.head_dim // 16) * 16) * 2
    affordable = left // 2 // (token_bytes * BLOCK_SIZE)
    wanted = -(-spec.max_position // BLOCK_SIZE)
    if affordable < min(wanted, 8):
        raise LoadError(
            f"the weights take {weights / 2**30:.1f} GiB, {(left + weights) / 2**30:.1f} GiB of memory are free",
            hint="use a smaller model or stronger quantisation, or close other programs",
        )
    per_sequence = min(wanted, affordable)
    if per_sequence < wanted:
        logger.warning(
            "memory for %d tokens of context; the model allows %d", per_sequence * BLOCK_SIZE, spec.max_position
        )
    return Limits(
        max_tokens=plan.max_batch_tokens,
        max_seqs=plan.max_seqs,
        max_logits=max(plan.max_seqs, _LOGIT_ROWS),
        num_blocks=min(affordable, per_sequence * plan.max_seqs),
        block_size=BLOCK_SIZE,
        max_blocks=per_sequence,
    )
