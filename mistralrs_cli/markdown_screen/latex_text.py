"""Formulas as readable text: Greek letters, common signs, sub- and superscripts, fractions and roots."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

_GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
    *("nu", "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
)


def _greek() -> dict[str, str]:
    letters = {}
    for name in _GREEK:
        unicode_name = "LAMDA" if name == "lambda" else name.upper()
        letters[name] = unicodedata.lookup(f"GREEK SMALL LETTER {unicode_name}")
        letters[name.capitalize()] = unicodedata.lookup(f"GREEK CAPITAL LETTER {unicode_name}")
    return letters | {"varepsilon": "ε", "vartheta": "ϑ", "varphi": "φ", "varrho": "ϱ", "varsigma": "ς", "varpi": "ϖ"}


SIGNS = _greek() | {
    "times": "×", "cdot": "·", "div": "÷", "pm": "±", "mp": "∓", "ast": "∗", "circ": "∘", "le": "≤", "leq": "≤",
    "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "equiv": "≡", "sim": "∼", "propto": "∝", "ll": "≪",
    "gg": "≫", "to": "→", "rightarrow": "→", "leftarrow": "←", "Rightarrow": "⇒", "Leftarrow": "⇐", "implies": "⇒",
    "iff": "⇔", "Leftrightarrow": "⇔", "leftrightarrow": "↔", "mapsto": "↦", "infty": "∞", "partial": "∂",
    "nabla": "∇", "sum": "∑", "prod": "∏", "int": "∫", "oint": "∮", "forall": "∀", "exists": "∃", "in": "∈",
    "notin": "∉", "subset": "⊂", "subseteq": "⊆", "supset": "⊃", "supseteq": "⊇", "cup": "∪", "cap": "∩",
    "emptyset": "∅", "setminus": "∖", "land": "∧", "wedge": "∧", "lor": "∨", "vee": "∨", "neg": "¬", "lnot": "¬",
    "oplus": "⊕", "otimes": "⊗", "perp": "⊥", "parallel": "∥", "angle": "∠", "ldots": "…", "dots": "…", "cdots": "⋯",
    "prime": "′", "hbar": "ℏ", "ell": "ℓ", "Re": "ℜ", "Im": "ℑ", "therefore": "∴", "because": "∵", "mid": "|",
    "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "degree": "°",
    "quad": "  ", "qquad": "    ", "left": "", "right": "", "displaystyle": "", "limits": "",
    ",": " ", ";": " ", ":": " ", "!": "", " ": " ", "{": "{", "}": "}", "%": "%", "$": "$", "&": "&", "#": "#",
    "_": "_", "|": "∥",
}  # fmt: skip
"""Commands without arguments."""
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
    | {"log", "ln", "exp", "lim", "max", "min", "gcd", "det"}
)
_TEXTS = frozenset(
    {"text", "mathrm", "textbf", "textit", "mathbf", "mathit", "operatorname", "mbox", "mathsf", "boldsymbol"}
)
_SETS = dict(zip("CHNPQRZ", "ℂℍℕℙℚℝℤ", strict=True))
SUPERSCRIPTS = dict(zip("0123456789+-=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", strict=True))
SUBSCRIPTS = dict(zip("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
_PARTS = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_DEEPEST = 20


class _Unknown(Exception):
    """The formula holds something that has no plain form."""


def latex_text(formula: str) -> str | None:
    """Returns a formula as text on one line; None: it holds a command that has no such form."""
    try:
        text = _sequence(iter(_PARTS.findall(formula)), closing=None, depth=0)
    except _Unknown:
        return None
    return re.sub(r"\s+", " ", text).strip()


def _sequence(parts: Iterator[str], *, closing: str | None, depth: int) -> str:
    if depth > _DEEPEST:
        raise _Unknown
    text: list[str] = []
    for part in parts:
        if part == closing:
            return "".join(text)
        text.append(_item(part, parts, depth))
    if closing is not None:
        raise _Unknown
    return "".join(text)


def _item(part: str, parts: Iterator[str], depth: int) -> str:
    """Returns one part and its arguments as text."""
    if part == "{":
        return _sequence(parts, closing="}", depth=depth + 1)
    if part in ("^", "_"):
        return _script(_argument(parts, depth), SUPERSCRIPTS if part == "^" else SUBSCRIPTS, part)
    if part in ("}", "&"):
        raise _Unknown
    if part[0] != "\\" or len(part) == 1:
        return part
    name = part[1:]
    if name in _COMMANDS:
        return _COMMANDS[name](parts, depth)
    if name in SIGNS:
        return SIGNS[name]
    if name in _FUNCTIONS:
        return f"{name} "
    if name in _TEXTS:
        return _argument(parts, depth)
    raise _Unknown


def _argument(parts: Iterator[str], depth: int) -> str:
    for part in parts:
        if not part.isspace():
            return _item(part, parts, depth + 1)
    raise _Unknown


def _script(text: str, letters: dict[str, str], sign: str) -> str:
    if text and all(letter in letters for letter in text):
        return "".join(letters[letter] for letter in text)
    return f"{sign}{_grouped(text)}"


def _fraction(parts: Iterator[str], depth: int) -> str:
    return f"{_grouped(_argument(parts, depth))}/{_grouped(_argument(parts, depth))}"


def _root(parts: Iterator[str], depth: int) -> str:
    text = _argument(parts, depth)
    if text == "[":  # another root than the square one
        raise _Unknown
    return f"√{_grouped(text)}"


def _set(parts: Iterator[str], depth: int) -> str:
    letter = _argument(parts, depth)
    if letter not in _SETS:
        raise _Unknown
    return _SETS[letter]


def _boxed(parts: Iterator[str], depth: int) -> str:
    return f"[{_argument(parts, depth)}]"


_COMMANDS: dict[str, Callable[[Iterator[str], int], str]] = {
    "frac": _fraction,
    "dfrac": _fraction,
    "tfrac": _fraction,
    "sqrt": _root,
    "mathbb": _set,
    "boxed": _boxed,
}


def _grouped(text: str) -> str:
    """Returns text that may stand beside a sign: in parentheses, unless it is one word."""
    return text if len(text) == 1 or text.isalnum() else f"({text})"
