"""The part of a model that the command line needs, which ``mistralrs.api.local_model.LocalModel`` has.

``load_model`` makes the real one; tests hand ``main`` another loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mistralrs.errors import EngineError
from mistralrs.progress import Progress

if TYPE_CHECKING:
    from mistralrs.api.load_options import LoadOptions, ModelSource
    from mistralrs.api.loaded_adapters.known_adapters import ScalingAxes
    from mistralrs.api.read_stream import Thought
    from mistralrs.engine.config import SamplingParams
    from mistralrs.engine.events import Event
    from mistralrs.grammar.grammar_text import GrammarText


class LostModelError(EngineError):
    """The model answers nothing any more, neither this request nor a later one."""


class AnswerStream(Protocol):
    """One answer as it comes."""

    def __iter__(self) -> Iterator[Event | Thought]: ...

    def prompt_progress(self) -> tuple[int, int] | None:
        """Returns how many tokens of the prompt are computed, and how many there are; None: it is not known."""

    def cancel(self) -> None:
        """Ends the answer within a step; safe from any thread, and more than once."""


class Info(Protocol):
    """The facts of a model."""

    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def quantization(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def backend(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def unavailable_backends(self) -> tuple[str, ...]:
        """Faster backends that cannot run here, and the reasons."""

    @property
    def sampling(self) -> Mapping[str, float]:
        """The sampling parameters that the model's makers recommend, by the names of ``SamplingParams``."""

    @property
    def precision(self) -> str:
        """``--precision`` that it was loaded with; empty where that is not known."""

    @property
    def kv_cache_dtype(self) -> str:
        """The type of keys and values in its KV cache; empty where that is not known."""

    @property
    def kv_token_bytes(self) -> int:
        """Bytes that a token of context takes in the KV cache; 0 where that is not known."""


class Vocabulary(Protocol):
    """The part of a tokenizer that commands need."""

    @property
    def add_bos(self) -> bool: ...

    def encode(self, text: str, *, special: bool, bos: bool = False) -> list[int]: ...
    def token_text(self, token: int) -> str: ...
    def token_bytes(self, token: int) -> bytes: ...


class Adapters(Protocol):
    """The adapters of a model at one moment."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def active(self) -> Mapping[str, float]:
        """Names and weights of those that act on requests that choose none."""

    @property
    def scaling_axes(self) -> ScalingAxes | None:
        """Names along the scalings of X-LoRA; None: the model is none."""

    def require_scalings(self) -> ScalingAxes:
        """Returns the names along the scalings. Raises ``RequestError`` for a model that is no X-LoRA."""

    def describe(self) -> str:
        """Returns one line about them; empty if there are none."""

    def check(self, weights: Mapping[str, float]) -> None:
        """Raises ``RequestError`` for adapters that cannot act together with these weights."""


class Model(Protocol):
    """A loaded model."""

    @property
    def info(self) -> Info: ...
    @property
    def has_template(self) -> bool: ...
    @property
    def tokenizer(self) -> Vocabulary: ...
    @property
    def template_source(self) -> str:
        """The chat template. Raises ``RequestError`` where it is not known."""

    @property
    def vocab_size(self) -> int:
        """Ids from this number on are in no prompt and no answer."""

    def known_adapters(self) -> Adapters:
        """Returns the adapters that requests can name at this moment."""

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
    ) -> AnswerStream:
        """Answers a conversation. ``adapters``: names and weights of those that act; None: the default ones.
        ``scalings``: the events have those of X-LoRA. ``grammar``: the answer matches it; None: any text.
        ``thinking``: whether it thinks first, which comes as ``Thought``; None: as its template does.
        ``continues``: the answer goes on where the last message ends.

        Raises ``RequestError`` if the conversation cannot be answered.
        """

    def tokens_of(self, messages: Sequence[Mapping[str, object]]) -> tuple[int, ...]:
        """Returns the prompt of a conversation, however long it is. Raises ``RequestError`` where it cannot be made."""

    def complete(self, prompt: Sequence[int], sampling: SamplingParams, *, scalings: bool = False) -> AnswerStream:
        """Continues token ids. ``scalings`` as for ``chat``. Raises ``RequestError`` if they cannot be continued."""

    def close(self) -> None:
        """Ends all requests and frees the memory."""


@runtime_checkable
class ServersModel(Protocol):
    """A model of a server, which has to be told the parameters that it is to obey."""

    def sends(self, field: str) -> bool:
        """Returns whether requests carry a field of ``SamplingParams``; the server decides about the others."""

    def give(self, field: str) -> None:
        """Sends a field of ``SamplingParams`` with later requests. Raises ``RequestError`` for one that the server is
        not known to obey."""


Loader = Callable[["ModelSource", "LoadOptions", Progress], Model]


def load_model(source: ModelSource, options: LoadOptions, progress: Progress) -> Model:
    """Returns the real model, in this process."""
    from mistralrs.api.local_model import LocalModel

    return LocalModel.load(source, options, progress=progress)
