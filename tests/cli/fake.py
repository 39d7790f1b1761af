"""A model whose answers are scripted by its prompt, so that the terminal can be tested without weights."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.known_adapters import ScalingAxes
from mistralrs.api.read_stream import Thought
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Event, Failed, Finished, Scalings, TokenLogprob, Usage
from mistralrs.errors import ContextLengthError, EngineError, LoadError, RequestError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.progress import Progress
from mistralrs_cli.chat_commands.context_room import INSTRUCTION

CONTEXT_LENGTH = 8192
VOCABULARY = 1200


@dataclass(frozen=True)
class FakeInfo:
    """The facts of the model; the name carries a control sequence, as a hostile file's could."""

    name: str = "Fake\x1b[31m-1B"
    architecture: str = "llama"
    quantization: str = "Q4_1"
    context_length: int = CONTEXT_LENGTH
    backend: str = "cpu avx2"
    threads: int = 2
    unavailable_backends: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    precision: str = "default"
    kv_cache_dtype: str = "f16"
    kv_token_bytes: int = 23040


@dataclass(frozen=True)
class FakeAdapters:
    """Adapters that are only names."""

    names: tuple[str, ...]
    active: Mapping[str, float]

    scaling_axes: ScalingAxes | None = None

    def require_scalings(self) -> ScalingAxes:
        if self.scaling_axes is None:
            raise RequestError("scalings are those of X-LoRA, and this model is none")
        return self.scaling_axes

    def describe(self) -> str:
        return f"{', '.join(self.names)}; {len(self.active)} active" if self.names else ""

    def check(self, weights: Mapping[str, float]) -> None:
        for name in weights:
            if name not in self.names:
                raise RequestError(f"there is no adapter {name!r}", hint=f"known are {', '.join(self.names)}")


class FakeTokenizer:
    """A character is a token."""

    add_bos = False

    def encode(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        return [ord(character) % VOCABULARY for character in text]

    def token_text(self, token: int) -> str:
        return chr(token)

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()


SCALINGS = Scalings(
    1999, (ord("z"), ord("a"), ord("b")), (2, 2), struct.pack("12f", *[9.0] * 4, *[0.5, 0, 0.3, 0.2] * 2)
)
"""Of the prompt's last token and of an answer of two."""

LOGPROBS = (
    TokenLogprob(1, "sure", b"sure", math.log(0.99)),
    TokenLogprob(2, "maybe\n", b"maybe\n", math.log(0.5), (TokenLogprob(9, "other", b"other", math.log(0.4)),)),
    TokenLogprob(3, "never", b"never", math.log(0.01)),
)

PAGE = """# Une page

A paragraph with **bold**, *slanted* and `code` words that is longer than most terminals are wide, and a [link](https://example.org/a).

大型语言模型的回答应当按显示宽度换行，日本語の文章も同じです。🎉 👍 e\u0301a\u0308

1. first
2. second
   - inner 値

| Name | 幅 | Note |
|------|---:|------|
| ア | 2 | wide cell text that has to be broken somewhere |
| b | 10 | 🎉 |

```python
def area(radius: float) -> float:
    return 3.14159 * radius**2  # 円
```

> quoted words of somebody

Its area is $\\pi r^2$.
"""
"""An answer with most of Markdown."""
Reason = Literal["stop", "length"]


class FakeStream:
    """Pieces of an answer, ``pause`` seconds apart; ``pauses``: others, by the number of pieces before them.

    ``cancel`` ends it at once.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        usage: Callable[[int], Usage],
        *,
        pause: float = 0.0,
        pauses: Mapping[int, float] | None = None,
        reason: Reason = "stop",
        error: EngineError | None = None,
        scalings: Scalings | None = None,
        thoughts: Sequence[str] = (),
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        self._logprobs = logprobs
        self._thoughts = thoughts
        self._scalings = scalings
        self._pieces, self._usage, self._pause, self._reason, self._error = pieces, usage, pause, reason, error
        self._pauses = pauses or {}
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[Event | Thought]:
        if os.environ.get("FAKE_SAYS_BEGUN"):
            os.write(2, b"begun\n")
        done = 0
        yield from map(Thought, self._thoughts)
        for done, piece in enumerate(self._pieces, 1):
            if self._cancelled.wait(self._pauses.get(done - 1, self._pause)):
                yield Finished("cancelled", self._usage(done - 1))
                return
            yield Delta(piece, (done,), tuple(self._logprobs[done - 1 : done]))
        if self._error is not None:
            yield Failed(self._error, self._usage(done))
        else:
            if self._scalings is not None:
                yield self._scalings
            yield Finished(self._reason, self._usage(done))

    def prompt_progress(self) -> tuple[int, int]:
        return 1240, 3900

    def cancel(self) -> None:
        self._cancelled.set()


class FakeModel:
    """Answers by the first word of the last message; anything else is echoed."""

    def __init__(self, source: ModelSource, options: LoadOptions) -> None:
        slower = os.environ.get("FAKE_PASSED_OVER")
        own = json.loads(os.environ.get("FAKE_SAMPLING", "{}"))
        self.info = FakeInfo(unavailable_backends=(slower,) if slower else (), sampling=own)
        self.has_template = options.chat_template != "none"
        self.tokenizer = FakeTokenizer()
        self.vocab_size = VOCABULARY
        self.template_source = "{{ messages }}"
        self._max_draft = options.max_draft or 0
        named = tuple(each.name for each in options.adapters.adapters)
        axes = ScalingAxes(("music", "law"), ("q_proj", "v_proj")) if options.adapters.xlora else None
        self._adapters = FakeAdapters(named, dict(options.adapters.active), axes)
        self._loaded = {"source": asdict(source), "options": asdict(options)}

    def known_adapters(self) -> FakeAdapters:
        return self._adapters

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        sampling: SamplingParams,
        *,
        truncate: bool = False,
        adapters: Mapping[str, float] | None = None,
        scalings: bool = False,
        grammar: GrammarText | None = None,
        thinking: bool | None = None,
        continues: bool = False,
    ) -> FakeStream:
        assert continues == (messages[-1]["role"] == "assistant")
        text = str(messages[-1]["content"])
        word = text.partition(" ")[0].partition("\n")[0]

        def usage(done: int) -> Usage:
            return Usage(
                2000,
                1812,
                done,
                prompt_s=0.5,
                completion_s=0.25,
                first_token_s=0.6,
                seed=sampling.seed,
                drafted_tokens=3 * self._max_draft,
                accepted_tokens=self._max_draft,
            )

        if text.startswith(INSTRUCTION):
            said = [each for each in messages if each["role"] == "user"]
            if len(said) > 5:
                raise ContextLengthError(9000, CONTEXT_LENGTH)
            if str(said[0]["content"]).startswith("endless"):
                return FakeStream(["the same words again "] * (sampling.max_tokens or 0), usage, reason="length")
            return FakeStream(["Summary of ", f"{len(said) - 1}: {said[0]['content']}"], usage)
        if word == "crowded" and len(messages) > 7:
            raise ContextLengthError(9000, CONTEXT_LENGTH)
        if word == "loop":
            return FakeStream(["the same words again and "] * 12, usage)
        if word == "dry":
            return FakeStream([f"dry {sampling.dry_multiplier}"], usage)
        if word == "too-long":
            raise ContextLengthError(9000, CONTEXT_LENGTH)
        if word == "preparing":
            os.write(2, b"preparing\n")
            time.sleep(60)
        if word == "fail":
            return FakeStream(["half an "], usage, error=EngineError("the engine broke", hint="try again"))
        if word == "wrong":
            return FakeStream(["half "], usage, error=EngineError(f"it said {text}", hint=text))
        if word == "slow":
            return FakeStream([f"word{index} " for index in range(1000)], usage, pause=0.05)
        if word == "code":  # and then nothing for a minute
            return FakeStream(["Here:\n```py\nprint(", "1)\n", "``", "`\n", "late"], usage, pauses={4: 60.0})
        if word == "prefill":
            return FakeStream(["late"], usage, pause=60)
        if word == "flood":
            return FakeStream(["0123456789" * 100 + "\n"] * 10_000, usage)
        if word == "long":
            return FakeStream(["cut here"], usage, reason="length")
        if word == "probable" and sampling.logprobs is not None:
            return FakeStream(["sure", "maybe\n", "never"], usage, logprobs=LOGPROBS)
        if word == "escape":
            return FakeStream(["a\x1b", "]0;title\x07b\x1b[", "31mc\x9b2J", "d\te\r\n\x1b"], usage)
        if word == "think":
            thoughts = () if thinking is False else ("I \x1b[31mthink", " hard.\n")
            return FakeStream([f"answer {thinking}"], usage, thoughts=thoughts)
        if word == "think-long":
            return FakeStream(["answer"], usage, thoughts=["deliberation "[at % 13 :][:1] for at in range(260)])
        if word == "page":
            return FakeStream([PAGE[at : at + 3] for at in range(0, len(PAGE), 3)], usage)
        if word == "newlines":
            return FakeStream(["one\n", "\n", "two", "\n\n"], usage)
        if word == "nothing":
            return FakeStream([], usage)
        if word == "messages":
            return FakeStream([json.dumps([*messages])], usage)
        if word == "sampling":
            return FakeStream([json.dumps(asdict(sampling) | {"truncate": truncate})], usage)
        if word == "adapters":
            return FakeStream([json.dumps(None if adapters is None else dict(adapters))], usage)
        if word == "grammar":
            return FakeStream([json.dumps(None if grammar is None else asdict(grammar))], usage)
        if word == "loaded":
            return FakeStream([json.dumps(self._loaded, default=str)], usage)
        if continues:
            return FakeStream([" and more"], usage)
        if word == "seed":
            return FakeStream([f"seed {sampling.seed}"], usage)
        if word == "defect":
            raise ZeroDivisionError("a defect")
        return FakeStream([f"you said: {text}"], usage, scalings=SCALINGS if scalings else None)

    def tokens_of(self, messages: Sequence[Mapping[str, object]]) -> tuple[int, ...]:
        text = "".join(f"<{each['role']}>{each['content']}" for each in messages)
        return tuple(self.tokenizer.encode(text, special=False))

    def complete(self, prompt: Sequence[int], sampling: SamplingParams, *, scalings: bool = False) -> FakeStream:
        assert sampling.ignore_eos
        assert sampling.max_tokens is not None
        assert all(0 <= token < VOCABULARY for token in prompt)

        def usage(done: int) -> Usage:
            return Usage(len(prompt), 0, done, prompt_s=0.5, completion_s=0.25, first_token_s=0.5, seed=0)

        return FakeStream(["x"] * sampling.max_tokens, usage)

    def close(self) -> None:
        if os.environ.get("FAKE_SAYS_CLOSED"):
            os.write(2, b"closed\n")


def load_fake(source: ModelSource, options: LoadOptions, progress: Progress) -> FakeModel:
    """Loads nothing, in ``FAKE_LOAD_S`` seconds; ``FAKE_LOAD_ERROR`` is the error."""
    if os.environ.get("FAKE_SAYS_BEGUN"):
        os.write(2, b"loading\n")
    error = os.environ.get("FAKE_LOAD_ERROR")
    if error:
        raise LoadError(error, hint="take another file")
    seconds = float(os.environ.get("FAKE_LOAD_S", "0"))
    steps = int(seconds * 20)
    for step in range(steps):
        progress("loading \x1b[31mweights", step, steps)
        time.sleep(1 / 20)
    return FakeModel(source, options)
