"""Writes tests/quant/golden/quantizer_errors.json: llama.cpp's quantization errors of some weights, by type.

Run `python scripts/make_quantizer_golden.py` where llama-cpp-python 0.3.36 is installed (it is compiled on
installation, so the development environment lacks it) and `make model` has been run; MISTRALRS_TEST_MODEL names another
place. ggml quantizes without an importance matrix, as this project does, and decodes its blocks itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODEL = Path(os.environ.get("MISTRALRS_TEST_MODEL", ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
GOLDEN = ROOT / "tests" / "quant" / "golden" / "quantizer_errors.json"


def main() -> int:
    try:
        import llama_cpp
    except ModuleNotFoundError as missing:
        print(f"{missing}: install llama-cpp-python==0.3.36, or name the Python that has it", file=sys.stderr)
        return 1
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from mistralrs.loading.gguf_file import RawTensor
    from mistralrs.quant.quantize import ISQ_TYPES
    from mistralrs.quant.types import QuantType
    from tests.quant import weights

    ggml = _ggml(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so")

    def decode(type_: QuantType, blocks: Any, count: int) -> weights.Floats:
        function = getattr(ggml, "dequantize_row_" + type_.name.lower().replace("_k", "_K"))
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        out = np.empty(count, np.float32)
        function(blocks.ctypes.data, out.ctypes.data, count)
        return out

    def decode_tensor(tensor: RawTensor) -> weights.Floats:
        rows, columns = tensor.shape
        return decode(tensor.type, np.frombuffer(tensor.data, np.uint8), rows * columns)

    def error(type_: QuantType, rows: weights.Floats) -> float:
        rows = np.ascontiguousarray(rows)
        blocks = np.empty((len(rows), type_.row_bytes(rows.shape[1])), np.uint8)
        written = ggml.ggml_quantize_chunk(type_.ggml_id, rows.ctypes.data, blocks.ctypes.data, 0, *rows.shape, None)
        if written != blocks.nbytes:
            raise RuntimeError(f"ggml wrote {written} bytes of {type_.name}, not {blocks.nbytes}")
        return weights.relative_error(rows, decode(type_, blocks, rows.size).reshape(rows.shape))

    sets = weights.generated() | weights.of_model(MODEL, decode_tensor)
    errors = {name: {t.name: error(t, rows) for t in ISQ_TYPES.values()} for name, rows in sets.items()}
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    golden = {"source": f"llama-cpp-python {llama_cpp.__version__}", "errors": errors}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{GOLDEN.relative_to(ROOT)}: {len(sets)} sets of weights, {len(ISQ_TYPES)} types")
    return 0


def _ggml(path: Path) -> ctypes.CDLL:
    ggml = ctypes.CDLL(str(path))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return ggml


if __name__ == "__main__":
    sys.exit(main())
