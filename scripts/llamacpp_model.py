"""A model in llama.cpp, for the scripts that write golden files. It needs llama-cpp-python 0.3.36, which the
development environment lacks, because it is compiled on installation.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

try:
    import llama_cpp
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}: install llama-cpp-python==0.3.36, or name the Python that has it")

SOURCE = f"llama-cpp-python {llama_cpp.__version__}"

_quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())


def decoded(source: Path, target: Path) -> Path:
    """Writes the model with all its weights in float32."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp does not decode {source}")
    return target


class LlamaCpp:
    """One sequence of at most ``length`` tokens. ``exact``: keys and values in float32, and a single thread.
    ``adapter``: a GGUF LoRA file that acts, with weight 1."""

    def __init__(self, path: Path, *, length: int, exact: bool, adapter: Path | None = None) -> None:
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
        if exact:
            parameters.n_threads = parameters.n_threads_batch = 1
            parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
            parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if adapter is not None:
            self._use(adapter)
        self._batch = llama_cpp.llama_batch_init(length, 0, 1)
        self._length = length
        self._done = 0

    def _use(self, adapter: Path) -> None:
        loaded = llama_cpp.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not loaded:
            raise RuntimeError(f"llama.cpp does not load {adapter}")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
        if llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0)):
            raise RuntimeError(f"llama.cpp does not use {adapter}")

    def tokens(self, text: str) -> list[int]:
        """Returns the text's tokens, with BOS if the model has it; control tokens may be spelled."""
        data, room = text.encode(), len(text.encode()) + 8
        found = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), found, room, True, True)
        return list(found[:count])

    def logits(self, tokens: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        """Returns (rows, vocabulary) logits at these indices of ``tokens``, which continue those of earlier calls."""
        assert self._done + len(tokens) <= self._length
        self._batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            self._batch.token[place], self._batch.pos[place] = token, self._done + place
            self._batch.n_seq_id[place], self._batch.seq_id[place][0] = 1, 0
            self._batch.logits[place] = place in rows
        if llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError("llama.cpp does not run this model")
        self._done += len(tokens)
        size = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        found = [llama_cpp.llama_get_logits_ith(self._context, row) for row in rows]
        return np.stack([np.ctypeslib.as_array(row, (size,)) for row in found])  # a copy: the next call overwrites them

    def forget(self) -> None:
        """Clears the cache for a new sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._done = 0

    def close(self) -> None:
        """Frees the memory."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
