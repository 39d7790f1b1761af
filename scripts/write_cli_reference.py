"""Writes `docs/cli.md`, the rows in `README.md` and the chat's commands in `docs/chat-guide.md` from the command line's
own tables.

`--check` writes nothing and prints which of them is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_origin

from mistralrs.api.options.declarations import DECLARED, Options, types
from mistralrs.api.options.model_options import (
    AddedOptions,
    AddedXLoraOptions,
    AnyGgmlOptions,
    AutoOptions,
    GgmlOptions,
    LoraOptions,
    PlainOptions,
    QuantizedOptions,
    XLoraOptions,
)
from mistralrs.api.options.option import Option
from mistralrs.api.options.resolve import VARIABLES
from mistralrs.api.options.values import without_none
from mistralrs.api.selectors.model_selector import SELECTORS, ModelSelector, defaults_of
from mistralrs_cli.arguments.typer_parameters import shown_default
from mistralrs_cli.chat.slash_commands import COMMANDS
from mistralrs_cli.chat_commands.command_help import markdown
from mistralrs_cli.commands.utility_options import (
    AdapterConvertOptions,
    AdapterInspectOptions,
    AdapterMergeOptions,
    BenchOptions,
    ChatsDeleteOptions,
    ChatsExportOptions,
    ChatsImportOptions,
    ChatsListOptions,
    ChatsSearchOptions,
    ChatsShowOptions,
    InspectOptions,
    ModelsOptions,
    OrderingCreateOptions,
    OrderingRenameOptions,
    QuantizeOptions,
    ScalingsOptions,
)
from mistralrs_cli.completion.completion_options import CompletionsOptions
from mistralrs_cli.diagnosis.diagnosis_options import ConfigOptions, DoctorOptions, TuneOptions, VerifyOptions

REFERENCE = "docs/cli.md"
README = "README.md"
CHAT_GUIDE = "docs/chat-guide.md"
SCRIPT = "scripts/write_cli_reference.py"

_AFTER_ROWS = (
    ("After a row for safetensors", PlainOptions),
    ("After a row for GGUF files", QuantizedOptions),
    ("After a row for GGML files", GgmlOptions),
    ("After `auto`", AutoOptions),
    ("After a row for GGUF or GGML files, besides those of its weights", AddedOptions),
    ("After a row for safetensors and after `auto`, besides those of its weights", AddedXLoraOptions),
    ("After a row with X-LoRA, besides those of its weights", XLoraOptions),
    ("After a row with LoRA, besides those of its weights", LoraOptions),
    ("After `bench`, before a row", BenchOptions),
    ("After `inspect`", InspectOptions),
    ("After `models`", ModelsOptions),
    ("After `chats list`", ChatsListOptions),
    ("After `chats show`", ChatsShowOptions),
    ("After `chats search`", ChatsSearchOptions),
    ("After `chats export`", ChatsExportOptions),
    ("After `chats import`", ChatsImportOptions),
    ("After `chats delete`", ChatsDeleteOptions),
    ("After `quantize`", QuantizeOptions),
    ("After `ordering create`", OrderingCreateOptions),
    ("After `ordering rename`", OrderingRenameOptions),
    ("After `adapter inspect`", AdapterInspectOptions),
    ("After `adapter convert`", AdapterConvertOptions),
    ("After `adapter merge`", AdapterMergeOptions),
    ("After `adapter scalings`, before a row", ScalingsOptions),
    ("After `config`", ConfigOptions),
    ("After `doctor`", DoctorOptions),
    ("After `verify`", VerifyOptions),
    ("After `tune`", TuneOptions),
    ("After `completions`", CompletionsOptions),
)
_COMMANDS = (
    "mistralrs [OPTIONS]                          # the default model",
    "mistralrs [OPTIONS] ROW [OPTIONS]            # the model that a row names",
    "mistralrs [OPTIONS] bench [OPTIONS] [ROW [OPTIONS]]",
    "mistralrs [OPTIONS] inspect SOURCE [OPTIONS]",
    "mistralrs [OPTIONS] models [list|delete NAME] [OPTIONS]",
    "mistralrs [OPTIONS] chats list|show CHAT|search TEXT|export CHAT|import FILE|delete CHAT [OPTIONS]",
    "mistralrs [OPTIONS] quantize SOURCE OUT.gguf --type TYPE",
    "mistralrs [OPTIONS] ordering create MODEL [OPTIONS]",
    "mistralrs [OPTIONS] ordering rename FILE --names NAME,NAME,... [OPTIONS]",
    "mistralrs [OPTIONS] adapter inspect SOURCE [OPTIONS]",
    "mistralrs [OPTIONS] adapter convert SOURCE --to gguf|peft --base MODEL --out PATH",
    "mistralrs [OPTIONS] adapter merge MODEL ADAPTER[:W]... --out PATH [--type TYPE]",
    "mistralrs [OPTIONS] adapter scalings --prompt TEXT [--svg FILE] [OPTIONS] ROW [OPTIONS]",
    "mistralrs [OPTIONS] config [--json]",
    "mistralrs [OPTIONS] doctor [--hub|--api URL] [--json]",
    "mistralrs [OPTIONS] verify FILE [OPTIONS]",
    "mistralrs [OPTIONS] tune SOURCE [OPTIONS]",
    "mistralrs completions bash|zsh|fish",
)
_OF_THE_ROW = {*defaults_of(SELECTORS["x-lora-mistral"]), *defaults_of(SELECTORS["lora-mistral-gguf"])} - {
    "gqa",
    "repeat_last_n",
}
"""The options whose defaults differ from row to row."""
_FORMATS = {"plain": "safetensors", "gguf": "GGUF", "ggml": "GGML", "any": "any"}


def reference() -> str:
    """Returns the text of `docs/cli.md`."""
    lines = [
        "# The command line",
        "",
        f"Generated by `{SCRIPT}`; to change it, change the tables in `mistralrs/api/selectors/model_selector.py`,",
        "`mistralrs/api/options/`, `mistralrs_cli/commands/utility_options.py` and",
        "`mistralrs_cli/diagnosis/diagnosis_options.py`.",
        "",
        "```sh",
        *_COMMANDS,
        "```",
        "",
        "Options of the first kind stand before the row or command, the others after it.",
        "",
        "## Before the row or command",
        "",
        *option_table(Options),
        "",
        "## Elsewhere than on the command line",
        "",
        "Each of these options may also stand in the environment or, under its key, in `config.toml` in the user's",
        "config folder; [scripting.md](scripting.md#configuration) says how. Options that are about one call, such as",
        "`--prompt` and `--port`, may not.",
        "",
        *elsewhere_table(),
        "",
        "Other variables:",
        "",
        "| Variable | Meaning |",
        "| --- | --- |",
        *(f"| `{name}` | {meaning} |" for name, meaning in VARIABLES.items()),
        "",
        "## Rows",
        "",
        "`xlora` is accepted for `x-lora`. In rows with adapters the base may also be that of the ordering;",
        "[the guide](adapters.md) tells about adapters.",
        "",
        *row_table(),
    ]
    for title, options in _AFTER_ROWS:
        lines += ["", f"## {title}", "", *option_table(options)]
        if options is GgmlOptions:
            lines += ["", "## After a row of any architecture, besides those of its weights", ""]
            lines += option_table(AnyGgmlOptions, besides=GgmlOptions)
    return "\n".join(lines) + "\n"


def option_table(options: type, *, besides: type | None = None) -> Iterator[str]:
    """Returns an options class as a table, without the options of the class ``besides``."""
    left_out = set() if besides is None else {each.name for each in fields(besides)}
    yield "| Option | Default | Meaning |"
    yield "| --- | --- | --- |"
    for each in fields(options):
        if each.name in left_out:
            continue
        declared = each.metadata["declaration"]
        names = [f"`{name}`" for name in sorted(declared.flags, key=len)]
        value = f" `{declared.metavar}`" if declared.metavar else ""
        shown = (", ".join(names) + value).strip().replace("|", "\\|")
        is_the_row_s = each.name in _OF_THE_ROW and options is not AutoOptions
        own = "the row's own" if is_the_row_s else _default(declared.shown_default, each.default)
        yield f"| {shown} | {own} | {declared.help} |"


def elsewhere_table() -> Iterator[str]:
    """Returns a table of the options of the environment and the config file, with the form of their values."""
    yield "| Option | Variable | Key | Value of the key |"
    yield "| --- | --- | --- | --- |"
    for name, declared in DECLARED.items():
        if declared.is_shared:
            cells = (declared.flags[0], declared.variable, declared.key)
            yield f"| {' | '.join(f'`{each}`' for each in cells)} | {_form(declared, without_none(types()[name]))} |"


def _form(declared: Option, hint: object) -> str:
    if get_origin(hint) is tuple:
        between = {",": "with a comma between two", None: "one of them"}[declared.separator]
        return f"a list of texts (variable: {between})"
    if declared.is_size:
        return 'bytes, or a text such as `"4G"`'
    forms = ((bool, "true or false (variable: 1 or 0)"), (int, "a whole number"), (float, "a number"))
    return next((form for kind, form in forms if hint is kind), "a text")


def _default(shown: str | None, default: object) -> str:
    if shown is None and default is ...:
        return "required"
    return shown or shown_default(default) or ""


def row_table() -> Iterator[str]:
    """Returns a table of every row with its model."""
    yield "| Row | Weights | Repository | File | Adapters |"
    yield "| --- | --- | --- | --- | --- |"
    for row in SELECTORS.values():
        weights = f"{row.architecture or 'any architecture'}, {_FORMATS[row.format]}"
        repo = row.base_repo or row.quantized_repo
        cells = (f"`{row.name}`", weights, _code(repo), _code(row.quantized_filename), _adapters(row))
        yield f"| {' | '.join(cells)} |"


def _adapters(row: ModelSelector) -> str:
    return " ".join(filter(None, (row.adapter, _code(row.adapter_repo)))) if row.adapter else ""


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def readme_table() -> list[str]:
    """Returns the rows by architecture, as in `README.md`."""
    lines = [
        "| Architecture | Safetensors | GGUF | GGML | With adapters |",
        "| --- | --- | --- | --- | --- |",
    ]
    for architecture in dict.fromkeys(row.architecture for row in SELECTORS.values()):
        rows = [row for row in SELECTORS.values() if row.architecture == architecture]
        cells = [_names(row for row in rows if not row.adapter and row.format in kinds) for kinds in _COLUMNS]
        lines.append(
            f"| {architecture or 'any'} | {' | '.join(cells)} | {_names(row for row in rows if row.adapter)} |"
        )
    return lines


_COLUMNS = (("plain", "any"), ("gguf", "any"), ("ggml", "any"))


def _names(rows: Iterable[ModelSelector]) -> str:
    return ", ".join(f"`{row.name}`" for row in rows)


def with_block(path: Path, name: str, lines: Iterable[str]) -> str:
    """Returns the text of a document with these lines between the marks of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = "\n".join((begin, *lines, end))
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"{path} must have the marks {begin} and {end} once")
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is out of date")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the source tree")
    arguments = parser.parse_args()
    readme, guide = arguments.root / README, arguments.root / CHAT_GUIDE
    wanted = {
        arguments.root / REFERENCE: reference(),
        readme: with_block(readme, "rows", readme_table()),
        guide: with_block(guide, "commands", (*markdown(COMMANDS), "")),
    }
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if arguments.check:
        for path in stale:
            sys.stderr.write(f"{path} is out of date: python {SCRIPT}\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
