"""Writes tests/text/smollm2_tokens.json: llama.cpp's tokens of some texts with SmolLM2's vocabulary.

Run `python scripts/make_smollm2_tokens.py` where llama-cpp-python 0.3.36 is installed (it is compiled on installation,
so the development environment lacks it) and `make model` has been run; MISTRALRS_TEST_MODEL names another place.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = Path(os.environ.get("MISTRALRS_TEST_MODEL", ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
GOLDEN = ROOT / "tests" / "text" / "smollm2_tokens.json"

TEXTS = [
    "",
    " ",
    "   \t\n\n \r\n  x",
    "Hello, world!",
    "The capital of France is",
    "I'll say we've 1234567890 reasons, don't you?",
    "I'LL SAY WE'VE 3.14159 REASONS",
    "Äpfel, naïve café, ½ ° ß",
    "русский текст, 中文文本，日本語のテキスト、한국어",
    "नमस्ते दुनिया مرحبا بالعالم שלום",
    "🦙🚀 👩‍👩‍👧‍👦 é e\u0301",
    "def f(x):\n    return x ** 2  # square\n\n\n\tif x != y: pass",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|><|endoftext|> <|im_end|>x<|im_end",
    "<<|im_end|>> <|im_<|im_end|>end|>",
    "https://example.org/a?b=c&d=%20#e",
    "x" * 40 + " " * 40 + "-" * 40 + "\n" * 5,
]


def main() -> int:
    try:
        import llama_cpp
    except ImportError:
        print("llama-cpp-python is needed: pip install llama-cpp-python==0.3.36", file=sys.stderr)
        return 1
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(MODEL).encode(), parameters)
    vocabulary = llama_cpp.llama_model_get_vocab(model)

    def tokens(text: str, *, special: bool) -> list[int]:
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 1))()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), False, special)
        return list(buffer[:count])

    rows = [{"text": t, "plain": tokens(t, special=False), "special": tokens(t, special=True)} for t in TEXTS]
    GOLDEN.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    print(f"{GOLDEN} has {len(rows)} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
