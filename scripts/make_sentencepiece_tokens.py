"""Writes `tests/text/sentencepiece_tokens.json`: SentencePiece's own tokens of some texts.

`python scripts/make_sentencepiece_tokens.py`, with the package sentencepiece installed. It trains tiny models, one for
each setting that matters, and takes Mistral's vocabularies where `make fixtures` has put them.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
VOCABULARIES = ROOT / ".fixtures" / "vocabularies"
GOLDEN = ROOT / "tests" / "text" / "sentencepiece_tokens.json"

CORPUS = """The quick brown fox jumps over the lazy dog, and the dog sleeps on.
She sells sea shells; the shells that she sells are surely sea shells.
hello world, hello there, hello again
Numbers such as 1, 12, 123 and 3.14159 are written in digits.
def double(value): return value * 2  # for value in values
if the answer is in the file, then the file is read again and again
Größe, Maß und Füße: schöne Wörter für schöne Sätze.
le café est à côté de l'hôtel, l'été
the thing is that nothing is there, other than the other thing
[INST] who are you [/INST] nobody, and who are you"""

TEXTS = [
    *("", " ", "  ", "   ", "\n", "\n\n", " \n ", "\t", "\r\n", "a", " a", "a ", " a ", "  two  spaces  ", "    four"),
    *("hello", "Hello", "hello world", "Hello, world!", "hello  world", "helloworld", "the other thing", "THE OTHER"),
    *("1", "12", "1234567890", "3.14159", "2026-11-22", "Größe", "Füße", "schöne Wörter", "café", "cafe\u0301"),
    *("日本語のテキスト", "你好，世界", "مرحبا", "привет", "🦙", "👨‍👩‍👧", "a🦙b", "\u00a0", "\u3000x", "ﬁ", "①"),
    *("<s>", "</s>", "<unk>", "<s>hello</s>", "[INST] who are you [/INST]", "[INST][/INST]", "x[INST]y", "<0x0A>"),
    *(
        "def double(value):\n    return value * 2\n",
        "`code`",
        "a/b\\c",
        "don't",
        "\u2581",
        "a\u2581b",
        "\x00",
        "\x7f",
    ),
    *("\ufeff", "\u200b", "the " * 20, "a" * 50, " " * 20, "\U0010ffff"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma": {"add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "▁▁▁", "[INST]", "\n\n"]},
    "squeezed": {"remove_extra_whitespaces": True},
    "no bytes": {"byte_fallback": False, "vocab_size": 150},
}


def main() -> int:
    try:
        import sentencepiece
    except ImportError:
        print("sentencepiece is needed: pip install sentencepiece==0.2.3", file=sys.stderr)
        return 1
    golden = {name: tiny(sentencepiece, settings) for name, settings in SETTINGS.items()}
    paths = sorted(VOCABULARIES.glob("*.model.v*"))
    if not paths:
        print(f"{VOCABULARIES} has no models: make fixtures", file=sys.stderr)
        return 1
    for path in paths:
        golden[path.name] = {"rows": list(rows(sentencepiece, path.read_bytes()))}
    parts = (f"{json.dumps(name)}: {{\n{body(entry)}\n}}" for name, entry in golden.items())
    GOLDEN.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    print(f"{GOLDEN} has {len(golden)} vocabularies of {len(TEXTS)} texts each")
    return 0


def body(entry: dict[str, Any]) -> str:
    """Returns a vocabulary's entry with a text on each line."""
    model = f'"model": {json.dumps(entry["model"])},\n' if "model" in entry else ""
    return f'{model}"rows": [\n' + ",\n".join(map(json.dumps, entry["rows"])) + "\n]"


def tiny(sentencepiece: ModuleType, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns a model of a few hundred pieces, with its tokens of the texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        **{
            "sentence_iterator": iter(CORPUS.splitlines()),
            "model_writer": model,
            "model_type": "bpe",
            "vocab_size": 420,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "num_threads": 1,
            "minloglevel": 2,
            **settings,
        }
    )
    return {"model": base64.b64encode(model.getvalue()).decode(), "rows": list(rows(sentencepiece, model.getvalue()))}


def rows(sentencepiece: ModuleType, model: bytes) -> Iterator[list[Any]]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in TEXTS:
        yield [text, processor.encode(text)]


if __name__ == "__main__":
    sys.exit(main())
