"""The tokens of a server's model: its ``/tokenize``, and the log-probabilities that a stream carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mistralrs.engine.events import TokenLogprob
from mistralrs.errors import LoadError
from mistralrs_cli.server_client.server_connection import Server, ServerConnection

TOKENIZE = "/tokenize"


class RemoteVocabulary:
    """Asks a mistralrs server for the tokens of texts and conversations, and remembers the bytes of each token."""

    add_bos = False
    """Callers of a server pass no ids, so they need no BOS of their own."""

    def __init__(self, server: Server, model_name: str) -> None:
        self._server = server
        self._model_name = model_name
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """Returns the ids of a text. Raises ``MistralrsError`` where the server does not tell them."""
        return self._ask({"prompt": text, "add_special_tokens": bos, "parse_special": special})

    def encode_conversation(self, messages: Sequence[Mapping[str, object]]) -> tuple[int, ...]:
        """Returns the ids of a conversation's prompt. Raises ``MistralrsError`` as ``encode`` does."""
        return tuple(self._ask({"messages": list(messages)}))

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes of a token that this object has returned."""
        return self._pieces[token]

    def token_text(self, token: int) -> str:
        """Returns the text of a token that this object has returned, for display."""
        return self._pieces[token].decode(errors="replace")

    def _ask(self, body: Mapping[str, object]) -> list[int]:
        asked = {"model": self._model_name, "with_pieces": True, **body}
        answer = ServerConnection(self._server).post(TOKENIZE, asked)
        try:
            pieces = [(each["id"], _bytes_of(each["piece"])) for each in answer["tokens"]]  # type: ignore[index]
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(
                f"{self._server.address} sent no list of tokens", hint="is it a mistralrs server?"
            ) from error
        self._pieces.update(pieces)
        return [token for token, _ in pieces]


def _bytes_of(piece: str | list[int]) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)


class StreamLogprobs:
    """Reads the log-probabilities in a stream of OpenAI's API. A server names no ids, so tokens are numbered by their
    bytes in the order in which they come.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def read(self, logprobs: Any) -> tuple[TokenLogprob, ...]:
        """Returns the tokens of a choice's ``logprobs``; none where it has none. Raises ``KeyError``, ``TypeError`` or
        ``ValueError`` for another form."""
        found = logprobs.get("content") if logprobs else None
        return tuple(self._token(each, each.get("top_logprobs") or ()) for each in found or ())

    def _token(self, entry: Any, top: Sequence[Any]) -> TokenLogprob:
        text = str(entry["token"])
        data = bytes(entry["bytes"]) if entry.get("bytes") else text.encode()
        number = self._numbers.setdefault(data, len(self._numbers))
        likeliest = tuple(self._token(each, ()) for each in top)
        return TokenLogprob(number, text, data, float(entry["logprob"]), likeliest)
