"""Streams become the same text however it is split into tokens; stop strings are never shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.errors import RequestError
from mistralrs.text.stream import TextStream, partial_suffix


class Bytes:
    """A tokenizer whose tokens are given byte strings, and control tokens by their names."""

    def __init__(self, tokens: Sequence[bytes | str], *, space_prefix: bool = False) -> None:
        self.tokens = tokens
        self.space_prefix = space_prefix

    def token_bytes(self, token: int) -> bytes:
        piece = self.tokens[token]
        return piece if isinstance(piece, bytes) else b""

    def token_text(self, token: int) -> str:
        piece = self.tokens[token]
        return piece if isinstance(piece, str) else piece.decode("utf-8", "replace")


def pushed(pieces: Sequence[bytes | str], *stop: str) -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(pieces), stop=stop)
    return [stream.push(token) for token in range(len(pieces))], stream


def whole(pieces: Sequence[bytes | str], *stop: str) -> str:
    parts, stream = pushed(pieces, *stop)
    return "".join(parts) + stream.finish()


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    """The data in pieces of these lengths, the rest as the last one."""
    pieces, start = [], 0
    for length in lengths:
        pieces.append(data[start : start + length])
        start += length
    return [*pieces, data[start:]]


def oracle(text: str, stop: list[str]) -> str:
    """The part of a text that is shown: up to the stop string that is complete first, or the longest of several."""
    for end in range(len(text) + 1):
        complete = [word for word in stop if text[:end].endswith(word)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def test_half_a_character_waits_for_the_other_half() -> None:
    parts, stream = pushed([b"a\xc3", b"\xa9", b"\xf0\x9f", b"\x98", b"\x80b"])
    assert parts == ["a", "é", "", "", "😀b"]
    assert stream.finish() == ""


def test_broken_characters_are_replaced() -> None:
    assert whole([b"a\xff", b"b"]) == "a\ufffdb"
    parts, stream = pushed([b"a\xf0\x9f"])
    assert parts == ["a"]
    assert stream.finish() == "\ufffd"


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    parts, stream = pushed([b"one ", b"E", b"N", b"x", b" EN", b"D and more", b"!"], "END")
    assert parts == ["one ", "", "", "ENx", " ", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_text_held_back_comes_at_the_end() -> None:
    parts, stream = pushed([b"an EN"], "END")
    assert parts == ["an "]
    assert not stream.stopped
    assert stream.finish() == "EN"
    assert stream.finish() == ""


def test_the_stop_string_complete_first_counts() -> None:
    for pieces in ([b"xabcd"], [b"x", b"a", b"b", b"c", b"d"]):
        assert whole(pieces, "abcd", "bc") == "xa"
        assert whole(pieces, "bc", "abc") == "x"


def test_a_stop_string_may_end_in_the_replacement_of_a_broken_character() -> None:
    parts, stream = pushed([b"ab\xf0"], "b\ufffd")
    assert "".join(parts) + stream.finish() == "a"
    assert stream.stopped


CHAT: tuple[bytes | str, ...] = (b"one", "<end>", b"\n", "<start>", b"us", b"er\n", b"two")
"""A model that goes on with the next turn of a chat."""


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ((), "one\nuser\ntwo"),
        (("<start>",), "one\n"),
        (("<end>",), "one"),
        (("<end>", "<start>"), "one"),
        (("e<end>",), "on"),
        (("<end>\n<start>",), "one"),
        (("<end>\n<start>user",), "one"),
        (("\n<start>user\ntw",), "one"),
        (("<start>user", "<start>us"), "one\n"),
        (("\n<start>uses", "<start>user"), "one\n"),
        (("\n<st",), "one"),
        (("<",), "one"),
        (("start>", ">\n", "end", "nd>\n<start>"), "one\nuser\ntwo"),
        (("<start>two", "<end><start>"), "one\nuser\ntwo"),
        (("e\nu", "\nuser"), "one\nuser\ntwo"),
    ],
    ids=str,
)
def test_control_tokens_are_matched_by_their_names_and_never_shown(stop: tuple[str, ...], shown: str) -> None:
    parts, stream = pushed(CHAT, *stop)
    assert "".join(parts) + stream.finish() == shown
    assert stream.stopped == (shown != "one\nuser\ntwo")
    assert (stream.stop_string in stop) == stream.stopped
    assert stream.finish() == ""


def test_only_text_that_may_belong_to_a_stop_string_is_held_back_beside_control_tokens() -> None:
    parts, stream = pushed([b"a", "<end>", b"\n", b"b", "<end>", b"c", "<", b"dd"], "<end>\nu", "d>d", "<e")
    assert (parts, stream.stopped) == (["a", "", "", "", "", "", "", ""], True)
    parts, stream = pushed([b"a", "<end>", b"\n", b"b", "<end>", b"c"], "<end>\nu", "d>c")
    assert parts == ["a", "", "", "\nb", "", "c"]
    assert (stream.stopped, stream.finish()) == (False, "")


def test_a_control_token_in_the_middle_of_a_character_leaves_it_whole() -> None:
    assert whole([b"a\xc3", "<end>", b"\xa9b"], "x") == "aéb"
    assert whole([b"a\xc3", "<end>", b"\xa9b"], "<end>") == "a"


def test_the_token_that_ends_an_answer_may_complete_a_stop_string() -> None:
    for piece in (b"END", "END"):
        stream = TextStream(Bytes([b"a\n", piece]), stop=["\nEND"])
        assert (stream.push(0), stream.finish(1), stream.stopped) == ("a", "", True)
        stream = TextStream(Bytes([b"a\n", piece]), stop=["\nENDS"])
        assert (stream.push(0), stream.finish(1), stream.stopped) == ("a", "\n", False)
    stream = TextStream(Bytes([b"a\xc3", "END"]), stop=["\ufffdEND"])
    assert (stream.push(0), stream.finish(1), stream.stopped) == ("a", "", True)


def test_a_control_token_leaves_the_first_word_its_space() -> None:
    stream = TextStream(Bytes(["<start>", b" a"], space_prefix=True), stop=["b"], trim_space=True)
    assert [stream.push(0), stream.push(1)] == ["", "a"]


@pytest.mark.parametrize("stop", [[""], ["x", ""]])
def test_an_empty_stop_string_is_refused(stop: list[str]) -> None:
    with pytest.raises(RequestError, match="a stop string is empty"):
        TextStream(Bytes([]), stop=stop)


def test_one_space_is_trimmed_where_the_tokenizer_wrote_it() -> None:
    pieces = [b"", b" ", b" a", b" b"]
    for prefix, trim, expected in ((True, True, " a b"), (True, False, "  a b"), (False, True, "  a b")):
        stream = TextStream(Bytes(pieces, space_prefix=prefix), trim_space=trim)
        assert "".join(map(stream.push, range(4))) + stream.finish() == expected


STOPS = st.lists(st.text("abé", min_size=1, max_size=4), max_size=4)
CUTS = st.lists(st.integers(0, 5), max_size=20)


@given(text=st.text("abé ", max_size=30), lengths=CUTS, stop=STOPS)
def test_any_split_shows_the_same_text(text: str, lengths: list[int], stop: list[str]) -> None:
    assert whole(cut(text.encode(), lengths), *stop) == oracle(text, stop)


@given(data=st.binary(max_size=30), lengths=CUTS)
def test_any_bytes_come_as_they_do_in_one_piece(data: bytes, lengths: list[int]) -> None:
    assert whole(cut(data, lengths)) == data.decode("utf-8", "replace")


@given(text=st.text("abé ", max_size=30), lengths=CUTS, stop=STOPS)
def test_text_held_back_is_the_beginning_of_a_stop_string(text: str, lengths: list[int], stop: list[str]) -> None:
    parts, stream = pushed(cut(text.encode(), lengths), *stop)
    stopped = stream.stopped
    rest = stream.finish()
    assert not (stopped and rest)
    assert rest == "" or any(word.startswith(rest) and word != rest for word in stop)
    assert "".join(parts) + rest == oracle(text, stop)


def oracle_with_names(pieces: list[bytes | str], stop: list[str], shown: Collection[str] = ()) -> str:
    """The same with tokens that are names: the shown part of the spelled text, without names that are not ``shown``."""
    spelled, is_name, is_inside = "", [], []
    for piece in pieces:
        text = piece if isinstance(piece, str) else piece.decode()
        spelled += text
        is_name += [isinstance(piece, str) and piece not in shown] * len(text)
        is_inside += [isinstance(piece, str) and place > 0 for place in range(len(text))]
    end = len(spelled)
    for stopped in range(len(spelled) + 1):
        starts = [stopped - len(word) for word in stop if spelled[:stopped].endswith(word)]
        starts = [start for start in starts if not is_inside[start]]
        if starts:
            end = min(starts)
            break
    return "".join(letter for letter, hidden in zip(spelled[:end], is_name, strict=False) if not hidden)


@given(
    pieces=st.lists(st.sampled_from(["aé", "ab", "a", b"a", b"b", "é".encode(), b"ab", b"ba "]), max_size=16),
    stop=STOPS,
)
def test_names_are_matched_as_text_is(pieces: list[bytes | str], stop: list[str]) -> None:
    assert whole(pieces, *stop) == oracle_with_names(pieces, stop)
    ended = TextStream(Bytes([*pieces, "ab"]), stop=stop)
    shown = "".join(map(ended.push, range(len(pieces)))) + ended.finish(len(pieces))
    assert shown == oracle_with_names([*pieces, "ab"], stop)


@given(
    pieces=st.lists(st.sampled_from(["aé", "ab", "a", b"a", b"b", "é".encode(), b"ab", b"ba "]), max_size=16),
    stop=STOPS,
    names=st.sets(st.sampled_from(["aé", "ab", "a"])),
)
def test_spelled_names_are_text(pieces: list[bytes | str], stop: list[str], names: set[str]) -> None:
    """Also that of the last token, and stop strings do not begin inside of them either."""
    pieces = [*pieces, "ab"]
    spelled = {token for token, piece in enumerate(pieces) if isinstance(piece, str) and piece in names}
    stream = TextStream(Bytes(pieces), stop=stop, spelled=spelled)
    shown = "".join(map(stream.push, range(len(pieces) - 1))) + stream.finish(len(pieces) - 1)
    assert shown == oracle_with_names(pieces, stop, names)


def test_a_spelled_name_ends_a_character_and_the_start_of_the_text() -> None:
    stream = TextStream(Bytes([b"a\xc3", "<end>", b" \xa9b"], space_prefix=True), trim_space=True, spelled={1})
    assert "".join(map(stream.push, range(3))) + stream.finish() == "a\ufffd<end> \ufffdb"
    stream = TextStream(Bytes(["<end>", b" a"], space_prefix=True), trim_space=True, spelled={0})
    assert [stream.push(0), stream.push(1)] == ["<end>", " a"]


@given(text=st.text("ab", max_size=12), words=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_partial_suffix(text: str, words: list[str]) -> None:
    starts = {word[:length] for word in words for length in range(len(word))}
    longest = max((length for length in range(1, len(text) + 1) if text[-length:] in starts), default=0)
    assert partial_suffix(text, words) == longest
