"""Writes tests/parity/golden/llamacpp_*.json: llama.cpp's logits of the tiny GGUF files of every architecture.

Run `python scripts/make_llamacpp_golden.py` in the development environment with llama-cpp-python 0.3.36 installed as
well; it is compiled on installation, so the environment goes without. Keys and values are kept in float32.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]

if TYPE_CHECKING:
    import numpy as np


def main() -> int:
    try:
        import llama_cpp
    except ModuleNotFoundError as missing:
        print(f"{missing}: install llama-cpp-python==0.3.36, or name the Python that has it", file=sys.stderr)
        return 1
    sys.path.insert(0, str(ROOT))
    from tests.architectures import VARIANTS, write_folder
    from tests.parity import llamacpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    llamacpp.GOLDEN.mkdir(exist_ok=True)
    for name, variant in VARIANTS.items():
        if not variant.in_gguf:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_folder(Path(temporary) / name, variant)
            files = []
            for case in llamacpp.CASES:
                if case.variants is not None and name not in case.variants:
                    continue
                path = case.write(Path(temporary) / "tiny.gguf", name, folder)
                logits = _logits(llama_cpp, path, llamacpp.TOKENS)
                rows = [[float(f"{x:.6g}") for x in logits[position].tolist()] for position in case.positions]
                files.append({"case": case.name, "digest": llamacpp.digest(path), "logits": rows})
        golden = {"source": f"llama-cpp-python {llama_cpp.__version__}", "files": files}
        target = llamacpp.GOLDEN / f"llamacpp_{name}.json"
        target.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"{target.relative_to(ROOT)}: {len(files)} files")
    return 0


def _logits(llama_cpp: Any, path: Path, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(tokens, vocabulary) logits of a whole text."""
    import numpy as np

    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp does not load {path}")
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 128
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
    parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, parameters)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for position, token in enumerate(tokens):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, True
    if llama_cpp.llama_decode(context, batch):
        raise RuntimeError(f"llama.cpp does not run {path}")
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (size,)) for i in range(len(tokens))]
    result = np.stack(rows)  # a copy: the context's own memory goes with it
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return result


if __name__ == "__main__":
    sys.exit(main())
