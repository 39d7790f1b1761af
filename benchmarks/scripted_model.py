"""Writes a GGUF file of the same shapes and types as another, whose model writes words in an order that is known.

    python -m benchmarks.scripted_model SOURCE.gguf TARGET.gguf

So edits of texts can be measured on models with random weights: the answer is known, and every matrix is computed as in
SOURCE. The layers add nothing to the embedding of the last token, as ``attn_output`` and ``ffn_down`` are zero. The
embeddings are random, and the head has that of each word in the row of the word that follows it. SOURCE must have a
head of its own.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from mistralrs.ops.backend import Backend, resolve
from mistralrs.quant.types import TYPES

ZERO = (".attn_output.weight", ".ffn_down.weight", ".ffn_down_exps.weight")
WORD, REST = re.compile("[Ġ▁][a-z]+"), re.compile("[a-z]+")
"""Tokens that are whole words, and those that continue one, as GGUF spells them."""


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args(given)
    if all(tensor.name != "output.weight" for tensor in gguf.GGUFReader(args.source).tensors):
        raise SystemExit(f"{args.source} has no head of its own")
    shutil.copyfile(args.source, args.target)
    reader = gguf.GGUFReader(args.target, "r+")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    backend = resolve("cpu").backend
    for name, tensor in tensors.items():
        if name.endswith(ZERO):
            columns = int(tensor.shape[0])
            tensor.data[:] = encoded(np.zeros((1, columns), np.float32), tensor, backend)
    columns, vocab = (int(size) for size in tensors["token_embd.weight"].shape)
    embedding = 0.02 * np.random.default_rng(0).standard_normal((vocab, columns), np.float32)
    head = np.zeros_like(embedding)
    for word, following in itertools.pairwise(script(reader)):
        head[following] = embedding[word]
    for name, values in (("token_embd.weight", embedding), ("output.weight", head)):
        tensors[name].data[:] = encoded(values, tensors[name], backend)
    reader.data.flush()


def script(reader: gguf.GGUFReader) -> list[int]:
    """Returns the words in their order, each once."""
    words = tokens_like(WORD, reader)
    random.Random(0).shuffle(words)
    return words


def tokens_like(pattern: re.Pattern[str], reader: gguf.GGUFReader) -> list[int]:
    """Returns the tokens that a pattern matches as a whole."""
    texts: Sequence[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    return [token for token, text in enumerate(texts) if pattern.fullmatch(text)]


def encoded(values: NDArray[np.float32], tensor: gguf.ReaderTensor, backend: Backend) -> NDArray[np.generic]:
    """Returns rows in the type of a tensor."""
    if tensor.tensor_type.name not in TYPES:
        raise SystemExit(f"{tensor.name} is in {tensor.tensor_type.name}, which nothing quantizes to")
    type_ = TYPES[tensor.tensor_type.name]
    packed = backend.quantize(tensor.name, type_, memoryview(np.ascontiguousarray(values)))
    return np.frombuffer(packed, tensor.data.dtype).reshape(len(values), -1)


if __name__ == "__main__":
    main()
