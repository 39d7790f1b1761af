"""Parses a command line into options: the Typer application, with subcommands made from the table of selectors.

Parsing opens no file and runs nothing; ``invocation`` resolves the parsed options.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mistralrs import __version__
from mistralrs.api.options.declarations import DECLARED
from mistralrs.api.selectors.model_selector import SELECTORS, ModelSelector, required_of, selector_named
from mistralrs.errors import UsageError
from mistralrs_cli.arguments.plain_values import read_plainly
from mistralrs_cli.arguments.selector_options import (
    AdapterOptions,
    WeightOptions,
    option_classes,
    overview,
    shown_defaults,
    summary,
)
from mistralrs_cli.arguments.typer_parameters import global_parameters, parameters

if TYPE_CHECKING:
    from mistralrs_cli.commands.utility_options import BenchOptions, ModelToolOptions, ScalingsOptions
    from mistralrs_cli.completion.completion_options import CompletionsOptions
    from mistralrs_cli.diagnosis.diagnosis_options import DiagnosisOptions

    UtilityOptions = ModelToolOptions | DiagnosisOptions

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

_TYPED = "mistralrs_cli.typed"
"""The key under which a parsing context keeps the subcommand as it was typed."""
_MODEL_FILES = (".gguf", ".bin", ".safetensors")
_TOO_MANY = 20
"""Names of commands that no hint lists."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A selector and the options after it."""

    selector: ModelSelector
    options: WeightOptions
    adapter: AdapterOptions


@dataclass(frozen=True, slots=True)
class ParsedArgs:
    """A parsed command line."""

    flags: Mapping[str, Any]
    """The options before the subcommand that were typed, by the names of their fields."""
    selection: Selection | None
    """None: the default model."""
    bench: BenchOptions | None
    """None: not the subcommand ``bench``."""
    subcommand: tuple[str, ...]
    """The selector and its options, as typed."""
    tool: UtilityOptions | None = None
    """None: not a subcommand that runs without a model."""
    scalings: ScalingsOptions | None = None
    """None: not the subcommand ``adapter scalings``."""
    completions: CompletionsOptions | None = None
    """None: not the subcommand ``completions``."""


class InnerCommands(TyperGroup):
    """The subcommands of a subcommand."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Returns the subcommand that ``args`` begin with. Raises ``UsageError`` that names the nearest."""
        if self.get_command(ctx, args[0]) is None:
            raise unknown_command(args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


class Subcommands(TyperGroup):
    """The subcommands, each made when it is needed: one option costs more time than the rest of a start."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names, in the order of the table."""
        return [*SELECTORS, *_OTHER]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns the subcommand, or None when there is none of that name."""
        if selector_named(cmd_name):
            return _row_command(cmd_name)
        return _OTHER[cmd_name]() if cmd_name in _OTHER else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the help's lists of subcommands, without making these."""
        width = max(map(len, self.list_commands(ctx)))
        for title, entries in {**overview(), "Other commands": list(_HELP.items())}.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in entries])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Returns the subcommand that ``args`` begin with. Raises ``UsageError`` that names the nearest."""
        command = self.get_command(ctx, args[0])
        if command is None:
            raise unknown_command(args[0], self.list_commands(ctx))
        ctx.meta[_TYPED] = tuple(args)
        return args[0], command, args[1:]


def parse(arguments: Sequence[str]) -> ParsedArgs | None:
    """Returns the parsed command line; None: help or the version was requested and printed. Raises ``UsageError``."""
    command = _application()
    seen: list[dict[str, Any]] = []
    try:
        with command.make_context("mistralrs", _with_last_chat(arguments), obj=seen) as context:
            result = command.invoke(context)
    except typer.Exit:
        return None
    except typer.TyperException as error:
        raise _usage_error(error) from None
    return result if isinstance(result, ParsedArgs) else ParsedArgs(seen[0], None, None, ())


def _with_last_chat(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with an empty name after a ``--resume`` that has none: Typer's options take one value or
    never one. A subcommand's name after it is the subcommand; ``--resume=NAME`` takes any name."""
    words = list(arguments)
    for index, word in enumerate(words):
        following = words[index + 1 : index + 2]
        if word == "--":
            break
        if word == "--resume" and (not following or following[0].startswith("-") or _is_subcommand(following[0])):
            words[index] = "--resume="
    return words


def _is_subcommand(name: str) -> bool:
    return name in _OTHER or selector_named(name) is not None


def command_tree() -> Any:
    """Returns the command with its options and subcommands, as the parser has them."""
    return _application()


def row_command(name: str) -> Any:
    """Returns the subcommand of a row; None: there is no such row."""
    return None if selector_named(name) is None else _row_command(name)


def show_version(wanted: bool) -> bool:
    """Handles the eager option ``--version``: prints the version and ends."""
    if wanted:
        typer.echo(f"mistralrs {__version__}")
        raise typer.Exit
    return wanted


def unknown_command(name: str, names: Sequence[str]) -> UsageError:
    """Returns the error of an unknown subcommand, which names the nearest."""
    nearest = difflib.get_close_matches(name, names, n=1)
    if "auto" in names and ("/" in name or name.endswith(_MODEL_FILES)):
        hint = f"write auto {name} for a file, a folder or a hub repository"
    elif nearest:
        hint = f"did you mean {nearest[0]}?"
    else:
        hint = (
            f"the commands are {', '.join(names)}" if len(names) < _TOO_MANY else "mistralrs --help lists the commands"
        )
    return UsageError(f"no such command: {name}", hint=hint)


def _is_absent(name: str, value: object) -> bool:
    """Returns whether the value is the parser's for an option that was not typed."""
    return value is None or value == [] or (value is False and not DECLARED[name].has_negation)


@functools.cache
def _application() -> Any:
    app = typer.Typer(
        cls=Subcommands,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )

    def remember(context: typer.Context, **options: Any) -> None:
        typed = {name: value for name, value in options.items() if not _is_absent(name, value)}
        context.obj.append({name: tuple(value) if isinstance(value, list) else value for name, value in typed.items()})

    _declare(remember, global_parameters({"version": show_version}))
    app.callback(
        invoke_without_command=True,
        help="Large language models on your own machine. Options stand before the command; without one the default "
        "model is used.",
    )(remember)
    return read_plainly(typer.main.get_command(app))


@functools.cache
def _row_command(name: str) -> Any:
    row = selector_named(name)
    assert row is not None
    classes = option_classes(row)

    def select(context: typer.Context, **options: Any) -> ParsedArgs:
        parts = [
            each(**{field.name: _frozen(field, options[field.name]) for field in fields(each)}) for each in classes
        ]
        return ParsedArgs(context.obj[0], Selection(row, *parts), None, context.meta[_TYPED])  # type: ignore[arg-type]

    shown, needed = shown_defaults(row), required_of(row)
    declared = [parameters(each, shown_defaults=shown, required=needed) for each in classes]
    _declare(select, [parameter for group in declared for parameter in group])
    return _single_command(name, select, help=summary(row))


def _frozen(field: Field[Any], value: Any) -> Any:
    """Returns the parser's value as the options after a row have it."""
    return tuple(value or ()) if field.default == () else value


@functools.cache
def _bench_command() -> Any:
    from mistralrs_cli.commands.utility_options import BenchOptions

    return _command_with_row("bench", BenchOptions, help=_HELP["bench"])


@functools.cache
def _command_with_row(name: str, options_class: type[BenchOptions | ScalingsOptions], *, help: str) -> Any:
    """A subcommand with options of its own, and then a row."""
    from mistralrs_cli.commands.utility_options import BenchOptions

    def run(context: typer.Context, row: list[str], **options: Any) -> ParsedArgs:
        wanted = options_class(**options)
        found = ParsedArgs(context.obj[0], None, None, tuple(row or ()))
        if row:
            if not selector_named(row[0]):
                raise unknown_command(row[0], list(SELECTORS))
            command = _row_command(row[0])
            with command.make_context(row[0], row[1:], parent=context) as inner:
                found = replace(command.invoke(inner), subcommand=tuple(row))
        return replace(found, bench=wanted) if isinstance(wanted, BenchOptions) else replace(found, scalings=wanted)

    argument = Annotated[list[str] | None, typer.Argument(metavar="[ROW [OPTIONS]...]", show_default=False)]
    row = inspect.Parameter("row", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=argument)
    _declare(run, [*parameters(options_class), row])
    return _single_command(name, run, help=help, context_settings=CONTEXT | {"allow_interspersed_args": False})


@functools.cache
def _help_command() -> Any:
    def show_help(
        context: typer.Context, command: Annotated[str | None, typer.Argument(show_default=False)] = None
    ) -> None:
        group_context = context.parent
        assert group_context is not None
        group: Any = group_context.command
        if command is None:
            typer.echo(group_context.get_help())
        else:
            name, found, _ = group.resolve_command(group_context, [command])
            typer.echo(found.get_help(typer.Context(found, info_name=name, parent=group_context)))
        raise typer.Exit

    return _single_command("help", show_help, help=_HELP["help"])


@functools.cache
def _completions_command() -> Any:
    from mistralrs_cli.completion.completion_options import CompletionsOptions

    def select(context: typer.Context, **options: Any) -> ParsedArgs:
        return ParsedArgs(context.obj[0], None, None, (), completions=CompletionsOptions(**options))

    _declare(select, parameters(CompletionsOptions))
    return _single_command("completions", select, help=_HELP["completions"])


def _tool_options() -> Mapping[str, type[UtilityOptions]]:
    """The options of the tools, by their commands. They are imported when one is made: a chat needs none of them."""
    from mistralrs_cli.commands import utility_options as utility
    from mistralrs_cli.diagnosis import diagnosis_options as diagnosis

    return {
        "inspect": utility.InspectOptions,
        "models": utility.ModelsOptions,
        "quantize": utility.QuantizeOptions,
        "config": diagnosis.ConfigOptions,
        "doctor": diagnosis.DoctorOptions,
        "verify": diagnosis.VerifyOptions,
        "tune": diagnosis.TuneOptions,
        "chats list": utility.ChatsListOptions,
        "chats show": utility.ChatsShowOptions,
        "chats search": utility.ChatsSearchOptions,
        "chats export": utility.ChatsExportOptions,
        "chats import": utility.ChatsImportOptions,
        "chats delete": utility.ChatsDeleteOptions,
        "ordering create": utility.OrderingCreateOptions,
        "ordering rename": utility.OrderingRenameOptions,
        "adapter inspect": utility.AdapterInspectOptions,
        "adapter convert": utility.AdapterConvertOptions,
        "adapter merge": utility.AdapterMergeOptions,
    }


@functools.cache
def _tool_command(name: str) -> Any:
    return _single_command(name, _tool(_tool_options()[name]), help=_HELP[name])


@functools.cache
def _tool_group(name: str) -> Any:
    """A subcommand with subcommands of its own."""
    app = typer.Typer(cls=InnerCommands, rich_markup_mode=None, add_completion=False, context_settings=CONTEXT)
    app.callback(help=_HELP[name])(lambda: None)
    for command, options_class in _tool_options().items():
        group, _, each = command.partition(" ")
        if each and group == name:
            app.command(each, help=_GROUP_HELP[command], context_settings=CONTEXT)(_tool(options_class))
    return typer.main.get_command(app)


@functools.cache
def _adapter_group() -> Any:
    from mistralrs_cli.commands.utility_options import ScalingsOptions

    group = _tool_group("adapter")
    text = _GROUP_HELP["adapter scalings"]
    group.add_command(_command_with_row("scalings", ScalingsOptions, help=text), "scalings")
    return group


def _tool(options_class: type[UtilityOptions]) -> Callable[..., ParsedArgs]:
    def select(context: typer.Context, **options: Any) -> ParsedArgs:
        return ParsedArgs(context.obj[0], None, None, (), options_class(**options))

    _declare(select, parameters(options_class))
    return select


_HELP = {
    "bench": "Measure the speed of a model: tokens a second for prompts and for generation. Without ROW: the default "
    "model.",
    "inspect": "Show what a model is: architecture, types, tokenizer, chat template, and the memory that it needs.",
    "models": "List the models in the hub's cache, or delete one.",
    "chats": "List, show, search, export, import and delete saved chats, without a model.",
    "quantize": "Write a safetensors model as a GGUF file with quantised weights.",
    "ordering": "Make and change ordering files, which name adapters in the order of training and their layers.",
    "adapter": "Show a LoRA adapter, convert it, or merge it into its model; show how X-LoRA mixes its adapters.",
    "config": "Show the options in force: each with its value and where that comes from.",
    "doctor": "Examine this machine: hardware, kernels, packages, folders. With --api: check a server of OpenAI's API.",
    "verify": "Verify a model's files: their structure, sizes and, where they are known, checksums.",
    "tune": "Show what fits into the memory: weights, KV, contexts and sequences, with command lines.",
    "completions": "Print a function with which bash, zsh or fish completes command lines.",
    "help": "Show the help of a command.",
}
_GROUP_HELP = {
    "chats list": "List the chats, the last used first.",
    "chats show": "Show a chat.",
    "chats search": "Find messages in all chats, the youngest first.",
    "chats export": "Write a chat as Markdown, JSON or HTML.",
    "chats import": "Save the chats of a file, each as a new one.",
    "chats delete": "Delete a chat with all that it holds.",
    "ordering create": "Write an ordering from the configs of a model and its adapters.",
    "ordering rename": "Write an ordering with other names for its adapters.",
    "adapter inspect": "Show what an adapter is and where it acts, without its model.",
    "adapter convert": "Write an adapter in the other format: peft or GGUF.",
    "adapter merge": "Write a model with adapters merged into its weights.",
    "adapter scalings": "Show with which weights X-LoRA mixes its adapters for each token of a text.",
}
_OTHER: dict[str, Callable[[], Any]] = {
    "bench": _bench_command,
    "inspect": lambda: _tool_command("inspect"),
    "models": lambda: _tool_command("models"),
    "chats": lambda: _tool_group("chats"),
    "quantize": lambda: _tool_command("quantize"),
    "ordering": lambda: _tool_group("ordering"),
    "adapter": _adapter_group,
    "config": lambda: _tool_command("config"),
    "doctor": lambda: _tool_command("doctor"),
    "verify": lambda: _tool_command("verify"),
    "tune": lambda: _tool_command("tune"),
    "completions": lambda: _completions_command(),
    "help": _help_command,
}
"""The subcommands that select no model."""


def _single_command(name: str, function: Callable[..., Any], **settings: Any) -> Any:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(name, **({"context_settings": CONTEXT} | settings))(function)
    return read_plainly(typer.main.get_command(app))


def _declare(function: Callable[..., Any], declared: list[inspect.Parameter]) -> None:
    """Gives a function that takes ``**options`` the parameters from which Typer makes options."""
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    function.__signature__ = inspect.Signature([context, *declared])  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in (context, *declared)}


_OF_ACCELERATORS = ("--device", "--features", "--gpu-layers", "--n-gpu-layers", "--num-device-layers")
"""Options with which other programs, and the original, ask for a GPU."""


def _usage_error(error: typer.TyperException) -> UsageError:
    words = " ".join(error.format_message().split()).replace(": Value error, ", ": ").removesuffix(".")
    message = words[:1].lower() + words[1:]
    context = getattr(error, "ctx", None)
    name = getattr(error, "option_name", None)
    if name is not None and context is not None and context.parent is not None and name in _global_names():
        return UsageError(message, hint=f"{name} is a global option: it goes before {context.info_name}")
    if name in _OF_ACCELERATORS:
        return UsageError(message, hint="there is no GPU backend yet; without it everything runs on the CPU")
    path = context.command_path if context is not None else "mistralrs"
    return UsageError(message, hint=f"{path} --help lists the options")


def _global_names() -> set[str]:
    return {name for each in _application().params for name in each.opts}
