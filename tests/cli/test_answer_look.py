"""Which answers are drawn, and how plain ones are wrapped: on a terminal at words, elsewhere not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from mistralrs_cli.markdown_screen.answer_display import Look, draws_markdown, knows_links, theme_of
from mistralrs_cli.markdown_screen.word_wrap import Piece, TextWrapper, wrap
from tests.cli.program import Program
from tests.cli.scrollback import chunked
from tests.cli.terminal import Terminal, environment

XTERM = {"TERM": "xterm-256color"}
PARTS = ("a", "bc", "longword", " ", "  ", "\n", "日", "本", "、", "e\u0301", "👩\u200d👦", "x" * 30, "\t", "。", "🎉")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("look", "variables", "on_terminal", "piped"),
    [
        (Look(), XTERM, True, False),
        (Look(plain=True), XTERM, False, False),
        (Look(color="never"), XTERM | {"CLICOLOR_FORCE": "1"}, False, False),
        (Look(color="always"), XTERM | {"NO_COLOR": "1"}, True, True),
        (Look(), XTERM | {"NO_COLOR": "1"}, False, False),
        (Look(), XTERM | {"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, False, False),
        (Look(), XTERM | {"CLICOLOR_FORCE": "1"}, True, True),
        (Look(), XTERM | {"CLICOLOR_FORCE": "0"}, True, False),
        (Look(), {"TERM": "dumb"}, False, False),
        (Look(), {}, False, False),
    ],
)
def test_what_is_drawn(look: Look, variables: Mapping[str, str], on_terminal: bool, piped: bool) -> None:
    assert draws_markdown(Screen(), look, variables) is on_terminal
    assert draws_markdown(io.StringIO(), look, variables) is piped


@pytest.mark.parametrize(
    ("variables", "known"),
    [
        (XTERM, False),
        ({"TERM": "xterm-kitty"}, True),
        (XTERM | {"TERM_PROGRAM": "iTerm.app"}, True),
        (XTERM | {"TERM_PROGRAM": "Apple_Terminal"}, False),
        (XTERM | {"WT_SESSION": "1"}, True),
        (XTERM | {"VTE_VERSION": "6800"}, True),
        (XTERM | {"VTE_VERSION": "4000"}, False),
    ],
)
def test_links_are_for_terminals_that_have_them(variables: Mapping[str, str], known: bool) -> None:
    assert knows_links(variables) is known


def test_the_theme_is_chosen_or_that_of_the_background() -> None:
    assert theme_of(Look(), {}) == "dark"
    assert [theme_of(Look(), {"COLORFGBG": each}) for each in ("0;15", "0;default;7", "15;0")] == ["light"] * 2 + [
        "dark"
    ]
    assert theme_of(Look(theme="light"), {"COLORFGBG": "15;0"}) == "light"
    assert theme_of(Look(theme="dark"), {"COLORFGBG": "0;15"}) == "dark"


def test_text_in_pieces_is_wrapped_as_the_whole() -> None:
    for seed in range(300):
        random = Random(seed)
        width = random.randint(8, 30)
        text = "".join(random.choice(PARTS) for _ in range(random.randint(1, 60)))
        wrapper = TextWrapper(lambda width=width: width)  # type: ignore[misc]
        shown = "".join(map(wrapper.feed, chunked(random, text))) + wrapper.finish()
        whole = wrap([Piece(text)], width)
        assert shown.split("\n") == ["".join(piece.text for piece in line) for line in whole], seed


WORDS = "**bold** " + "internationalization " * 4 + "日本語 `code`"


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize(
    ("arguments", "variables", "is_drawn"),
    [
        ([], {}, True),
        (["--plain"], {}, False),
        (["--color", "never"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
    ],
)
def test_one_prompt_on_a_terminal(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], is_drawn: bool, columns: int
) -> None:
    with Terminal([*arguments, "--prompt", WORDS], environment(tmp_path, **variables), columns=columns) as terminal:
        assert terminal.exit_code() == 0
        lines = terminal.lines()
    text = WORDS.replace("**", "").replace("`", "") if is_drawn else WORDS
    answer = [line.split() for line in lines if "T/s" not in line]
    assert " ".join(word for words in answer for word in words) == f"you said: {text}"
    assert (b"\x1b[1mbold" in terminal.raw) is is_drawn


def test_a_pipe_gets_the_text_as_it_is_unless_colours_are_asked_for(tmp_path: Path) -> None:
    program = Program(tmp_path)
    assert program("--prompt", WORDS)[1] == f"you said: {WORDS}\n"
    for arguments, variables in ((["--color", "always"], {}), ([], {"CLICOLOR_FORCE": "1"})):
        code, out, err = program("--prompt", WORDS, *arguments, variables=variables)
        assert (code, err) == (0, "")
        assert "\x1b[1mbold\x1b[0m" in out
        assert "\x1b[J" not in out
    code, out, err = program("--prompt", "x", "--color", "always", "--plain")
    assert (code, out) == (2, "")
    assert "exclude each other" in err


def test_thinking_is_wrapped_at_words(tmp_path: Path) -> None:
    with Terminal(["--prompt", "think-long", "--think", "on"], environment(tmp_path), columns=40) as terminal:
        assert terminal.exit_code() == 0
        lines = terminal.lines()
    words = [word for line in lines[: lines.index("")] for word in line.split()]
    assert words == ["deliberation"] * 20
