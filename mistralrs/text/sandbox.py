"""A Jinja sandbox with limits, set up like that of `transformers`, as chat templates expect.

A template comes from a foreign model file. It cannot reach Python, change its input, loop for ever or write without
end. A single operation may still take any time and memory, which the worker process limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 2_000_000
"""Steps of one rendering: an iteration is one, a call counts for 20 because it takes longer. They take 1 to 2 s."""
MAX_OUTPUT = 64 << 20
"""Characters of one rendering, and of one repeated string, at most."""
MAX_POWER_BITS = 4096

_STEPS = "%steps"
"""Name of a rendering's step counter, which is no valid name in a template."""


class TemplateRefusal(TemplateError):
    """The template refused its input by ``raise_exception``."""


class _Steps:
    def __init__(self) -> None:
        self._left = MAX_STEPS

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise SecurityError(f"more than {MAX_STEPS} steps")


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}`` marks a model's answers; in a prompt it has no effect."""

    tags = {"generation"}  # noqa: RUF012  # as in the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        # Not optimized: the optimizer would compute constant expressions while compiling, without limits.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols])
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.filters["tojson"] = _tojson
        self.filters["counted"] = _counted

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Names as in the base class: keyword arguments of a template may be called self or context.
        __context.resolve(_STEPS).take(20)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_POWER_BITS:
                raise SecurityError("a power is too large")
        elif _length(left) * _size(right) > MAX_OUTPUT or _length(right) * _size(left) > MAX_OUTPUT:
            raise SecurityError("a repeated text is too long")
        return super().call_binop(context, operator, left, right)


def compile_template(source: str) -> Template:
    """The compiled template. Raises Jinja's TemplateSyntaxError, and Python's errors for code nested too deeply."""
    environment = _Environment()
    tree = environment.parse(source)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
    return environment.template_class.from_code(environment, environment.compile(tree), environment.make_globals(None))


def render_template(template: Template, variables: dict[str, object]) -> str:
    """The rendered text. Raises TemplateRefusal when the template refuses its input, and any exception when it
    fails."""
    parts: list[str] = []
    length = 0
    for part in template.generate({**variables, _STEPS: _Steps()}):
        length += len(part)
        if length > MAX_OUTPUT:
            raise SecurityError(f"more than {MAX_OUTPUT} characters")
        parts.append(part)
    return "".join(parts)


@pass_context
def _counted(context: Context, values: Iterable[object]) -> Iterator[object]:
    steps = context.resolve(_STEPS)
    for value in values:
        steps.take(1)
        yield value


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _size(value: object) -> int:
    return value if isinstance(value, int) else 0
