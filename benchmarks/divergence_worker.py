"""Writes llama.cpp's logits of every position of a token sequence: a program of the Python that has llama-cpp-python.

    PY divergence_worker.py MODEL.gguf IDS.json OUT.npy

OUT: float32 (len(ids), vocabulary), with the settings that llama.cpp has by itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from llamacpp_model import LlamaCpp

CHUNK = 256


def main() -> None:
    path, ids_path, out = (Path(argument) for argument in sys.argv[1:])
    ids: list[int] = json.loads(ids_path.read_text())
    model = LlamaCpp(path, length=len(ids), exact=False)
    pieces = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    np.save(out, np.concatenate([model.logits(piece, range(len(piece))) for piece in pieces]))
    model.close()


if __name__ == "__main__":
    main()
