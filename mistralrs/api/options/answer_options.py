"""The options of one answer: its prompt, its limits, and the sampling of its tokens."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mistralrs.api.options.option import ANSWER, Mode, option
from mistralrs.api.schemas.sentinels import LARGEST_SEED, LEAST_MAX_TOKENS, LEAST_SEED, MAX_INT
from mistralrs.engine.admission import RANGES

CHAT_MAX_TOKENS = 4096
PROMPT_MAX_TOKENS = 128
RECOMMENDED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Parameters for which a model's makers may recommend values, which then are the defaults."""
_SHOWN = frozenset({Mode.CHAT, Mode.PROMPT})
_PROMPT = frozenset({Mode.PROMPT})


def _number(default: float, flag: str, parameter: str, *, help: str) -> Any:
    """Returns a sampling option that is a real number, with the range that the parameter has everywhere."""
    allowed = RANGES[parameter]
    shown = _or_own(default) if parameter in RECOMMENDED else None
    limits = {"least": allowed.least, "most": allowed.most, "shown_default": shown}
    return option(default, flag, metavar="X", modes=ANSWER, help=help, **limits)


def _or_own(default: float) -> str:
    return f"the model's own, or {default:g}"


def _max_tokens(flag: str, *, help: str, **settings: Any) -> Any:
    hint = f"it must be from 1 to {MAX_INT}, or -1 for no limit but the context"
    limits: dict[str, Any] = {
        "least": LEAST_MAX_TOKENS,
        "most": MAX_INT,
        "excluded": 0,
        "range_hint": hint,
        "shows_range": False,
    }
    return option(None, flag, metavar="N", together="max_tokens", help=help, **limits, **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """The part of ``Options`` that is about one answer."""

    interactive_mode: bool = option(
        False, "--interactive-mode", "-i", modes=frozenset({Mode.CHAT}), is_shared=False, help="Chat in the terminal."
    )
    resume: str | None = option(
        None,
        "--resume",
        metavar="[NAME|ID]",
        modes=frozenset({Mode.CHAT}),
        is_shared=False,
        help="Go on with a saved chat; without a name or number, with the last one.",
    )
    no_save: bool = option(
        False,
        "--no-save",
        modes=frozenset({Mode.CHAT}),
        help="Keep neither the chat nor its KV on disk.",
    )
    no_history: bool = option(
        False,
        "--no-history",
        modes=frozenset({Mode.CHAT}),
        help="Keep no line that is typed for later chats; up-arrow finds those of this one.",
    )
    context_policy: Literal["full", "slide", "compact"] | None = option(
        None,
        "--context",
        metavar="full|slide|compact",
        modes=frozenset({Mode.CHAT}),
        shown_default="full; with -t slide",
        help="When a chat fills the context: full: refuse the message and say what helps; slide: drop the oldest "
        "turns; compact: put a summary in their place.",
    )
    allow_net: bool = option(
        False,
        "--allow-net",
        modes=frozenset({Mode.CHAT}),
        help="Let messages attach pages with @https://...; otherwise a chat fetches nothing.",
    )
    plain: bool = option(
        False,
        "--plain",
        modes=_SHOWN,
        help="Show answers as the model writes them. Without it a terminal with colours shows their Markdown.",
    )
    color: Literal["auto", "always", "never"] = option(
        "auto",
        "--color",
        metavar="auto|always|never",
        modes=_SHOWN,
        help="Draw Markdown with colours; auto: on a terminal that has them, unless NO_COLOR is set, or where "
        "CLICOLOR_FORCE is.",
    )
    theme: Literal["auto", "light", "dark"] = option(
        "auto",
        "--theme",
        metavar="auto|light|dark",
        modes=_SHOWN,
        help="The background that colours are chosen for; auto: what COLORFGBG says, else dark.",
    )
    prompt: str | None = option(
        None,
        "--prompt",
        metavar="TEXT",
        modes=_PROMPT,
        is_shared=False,
        help="Answer one prompt and exit; '-' reads it from stdin. A piped stdin is appended as context.",
    )
    prompt_concurrency: int = option(
        1,
        "--prompt-concurrency",
        metavar="N",
        least=1,
        modes=_PROMPT,
        is_shared=False,
        help="Answer the prompt this many times, in one batch.",
    )
    prompt_max_tokens: int | None = _max_tokens(
        "--prompt-max-tokens",
        shown_default=str(PROMPT_MAX_TOKENS),
        modes=_PROMPT,
        is_shared=False,
        help="Tokens to generate at most; the same as --max-tokens.",
    )
    no_stdin: bool = option(
        False, "--no-stdin", modes=_PROMPT, is_shared=False, help="Leave stdin alone, for loops such as 'while read'."
    )
    system: str | None = option(None, "--system", metavar="TEXT", modes=ANSWER, help="The system message.")
    stats: bool = option(False, "--stats", modes=ANSWER, help="Say on stderr how fast each answer was, and its seed.")

    temperature: float = _number(0.1, "--temperature", "temperature", help="0 takes the most likely token.")
    top_k: int = option(
        32,
        "--top-k",
        metavar="N",
        least=-1,
        most=MAX_INT,
        shows_range=False,
        modes=ANSWER,
        shown_default=_or_own(32),
        help="Draw from this many tokens; 0 or -1: from all.",
    )
    top_p: float = _number(
        0.1, "--top-p", "top_p", help="Draw from the fewest tokens with this probability; 0: the likeliest, 1: all."
    )
    min_p: float = _number(0.0, "--min-p", "min_p", help="Least probability, relative to the most likely token.")
    repeat_penalty: float = _number(
        1.0, "--repeat-penalty", "repetition_penalty", help="Divides the score of tokens that were used."
    )
    frequency_penalty: float = _number(
        0.1, "--frequency-penalty", "frequency_penalty", help="Subtracted for each use of a token."
    )
    presence_penalty: float = _number(
        0.1, "--presence-penalty", "presence_penalty", help="Subtracted once a token was used."
    )
    seed: int | None = option(
        None,
        "--seed",
        metavar="N",
        least=LEAST_SEED,
        most=LARGEST_SEED,
        shows_range=False,
        modes=ANSWER,
        shown_default="random",
        help="The same seed gives the same text; -1: a random one.",
    )
    max_tokens: int | None = _max_tokens(
        "--max-tokens",
        modes=ANSWER,
        shown_default=f"{CHAT_MAX_TOKENS}, {PROMPT_MAX_TOKENS} with --prompt and --prompt-file",
        help="Tokens to generate at most for one answer; -1: to the end of the context.",
    )
    stop: tuple[str, ...] = option(
        (), "--stop", metavar="TEXT", modes=ANSWER, help="End the answer before this text. May be repeated."
    )
    think: Literal["on", "off", "hide"] | None = option(
        None,
        "--think",
        metavar="on|off|hide",
        modes=ANSWER,
        shown_default="as the model's template does",
        help="on: the model thinks first, and a terminal's stderr shows it, dim; off: it does not think; hide: its "
        "thinking is not shown, which is the default with --prompt.",
    )
    grammar: str | None = option(
        None,
        "--grammar",
        metavar="[KIND:]FILE",
        modes=ANSWER,
        is_shared=False,
        help="The answer matches the grammar in this file. KIND is regex, yacc, lark, gbnf, json_schema, choice or "
        "structural_tag; without it, the ending .y, .lark, .gbnf or .json (a schema) tells.",
    )
    regex: str | None = option(
        None,
        "--regex",
        metavar="PATTERN",
        modes=ANSWER,
        is_shared=False,
        help="The whole answer matches this regular expression.",
    )
    schema: Path | None = option(
        None,
        "--schema",
        metavar="FILE",
        modes=ANSWER,
        is_shared=False,
        help="The answer is JSON that obeys the JSON schema in this file.",
    )
    choice: tuple[str, ...] = option(
        (),
        "--choice",
        metavar="TEXT",
        modes=ANSWER,
        is_shared=False,
        help="The answer is one of these texts. To be repeated, once for each.",
    )
