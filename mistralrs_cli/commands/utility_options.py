"""The options after the subcommands that select no model."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mistralrs.api.options.model_options import gqa_option
from mistralrs.api.options.option import argument, option
from mistralrs.quant.quantize import ISQ_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The options after ``bench``."""

    n_prompt: int = option(
        512, "--n-prompt", "-p", metavar="N", least=0, help="Tokens of the prompt test; 0: no such test."
    )
    n_gen: int = option(
        128, "--n-gen", "-n", metavar="N", least=0, help="Tokens of the generation test; 0: no such test."
    )
    concurrency: str = option("1", "--concurrency", "-c", metavar="N,N,...", help="Streams at once.")
    repetitions: int = option(5, "--repetitions", "-r", metavar="N", least=1, help="How often each test runs.")
    json: bool = option(False, "--json", help="One JSON object a line and test instead of tables.")
    compare: Path | None = option(
        None, "--compare", metavar="FILE", help="Compare with the results that an older bench --json printed."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """The options after ``inspect``."""

    source: str = argument(..., metavar="SOURCE", help="The model: a hub repository, a folder or a file.")
    filename: str | None = option(
        None, "--filename", "-f", metavar="FILE", help="A file of the repository or folder, where several are models."
    )
    lora: tuple[str, ...] = option(
        (),
        "--lora",
        metavar="NAME=SOURCE",
        help="A LoRA adapter to run with it: whether it fits, and the memory that it takes. May be repeated.",
    )
    gqa: int | None = gqa_option()
    json: bool = option(False, "--json", help="One JSON object instead of text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsOptions:
    """The options after ``models``."""

    action: Literal["list", "delete"] = argument("list", metavar="list|delete", help="The action.")
    name: str | None = argument(None, metavar="NAME", help="The repository to delete, as OWNER/NAME.")
    yes: bool = option(False, "--yes", "-y", help="Delete without asking.")
    json: bool = option(False, "--json", help="One JSON object instead of a table.")


def _json() -> Any:
    return option(False, "--json", help="JSON instead of text.")


def _saved_chat() -> Any:
    return argument(..., metavar="CHAT", help="The chat's number, its name, or the beginning of its title.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatsListOptions:
    """What stands after ``chats list``."""

    json: bool = _json()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatsShowOptions:
    """What stands after ``chats show``."""

    chat: str = _saved_chat()
    json: bool = _json()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatsSearchOptions:
    """What stands after ``chats search``."""

    words: list[str] = argument(..., metavar="TEXT...", help="Words that a message has all of.")
    json: bool = _json()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatsExportOptions:
    """What stands after ``chats export``."""

    chat: str = _saved_chat()
    format: Literal["md", "json", "html"] = option(
        "md", "--format", metavar="md|json|html", help="json: messages as OpenAI's API has them."
    )
    out: Path | None = option(None, "--out", metavar="FILE", help="The file to write.", shown_default="stdout")
    force: bool = option(False, "--force", help="Replace a file that is there.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatsImportOptions:
    """What stands after ``chats import``."""

    file: Path = argument(..., metavar="FILE", help="Chats as JSON: messages as of OpenAI's API, or ShareGPT's.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatsDeleteOptions:
    """What stands after ``chats delete``."""

    chat: str = _saved_chat()
    yes: bool = option(False, "--yes", "-y", help="Delete without asking.")


ChatsOptions = (
    ChatsListOptions
    | ChatsShowOptions
    | ChatsSearchOptions
    | ChatsExportOptions
    | ChatsImportOptions
    | ChatsDeleteOptions
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """The options after ``quantize``."""

    source: str = argument(..., metavar="SOURCE", help="The safetensors: a hub repository, a folder or a file.")
    out: Path = argument(..., metavar="OUT", help="The GGUF file to write.")
    type: str = option(..., "--type", metavar="TYPE", help=f"The type of the weights: {', '.join(ISQ_TYPES)}.")


def _names(default: object, *, help: str) -> Any:
    return option(default, "--names", metavar="NAME,NAME,...", help=help)


def _out() -> Any:
    return option(None, "--out", metavar="FILE", help="The file to write, whole or not at all.", shown_default="stdout")


def _force() -> Any:
    return option(False, "--force", help="Replace a file that is there.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderingCreateOptions:
    """What stands after ``ordering create``."""

    model: str = argument(..., metavar="MODEL", help="The base model: a hub repository or a folder with a config.json.")
    adapters: str | None = option(
        None,
        "--adapters",
        "-a",
        metavar="REPO|FOLDER",
        help="The adapters, a folder for each. Only configs are read.",
    )
    names: str | None = _names(
        None,
        help="The adapters in the order of training. Not needed where X-LoRA's config of the adapters has them.",
    )
    subset: bool = option(
        False, "--subset", help="--names leaves out adapters of X-LoRA's config, as rows with LoRA allow."
    )
    target_modules: str | None = option(
        None,
        "--target-modules",
        metavar="NAME,NAME,...",
        help="The modules on which the adapters act, such as q_proj,v_proj. Needed only without --adapters.",
    )
    base_model_id: str | None = option(
        None, "--base-model-id", metavar="ID", shown_default="MODEL", help="The base model's name in the ordering."
    )
    out: Path | None = _out()
    force: bool = _force()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderingRenameOptions:
    """What stands after ``ordering rename``."""

    file: Path = argument(..., metavar="FILE", help="An ordering, or orderings/NAME.json of those that are shipped.")
    names: str = _names(..., help="The new names of the adapters, in the order of the file: those of their folders.")
    out: Path | None = _out()
    force: bool = _force()


def _adapter_file() -> Any:
    return option(
        None, "--filename", "-f", metavar="FILE", help="A file of the repository or folder, where several are adapters."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInspectOptions:
    """What stands after ``adapter inspect``."""

    source: str = argument(
        ..., metavar="SOURCE", help="The adapter: a folder of peft, a GGUF file, or a hub repository with one of them."
    )
    filename: str | None = _adapter_file()
    json: bool = option(False, "--json", help="One JSON object instead of text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConvertOptions:
    """What stands after ``adapter convert``."""

    source: str = argument(
        ..., metavar="SOURCE", help="The adapter: a folder of peft, a GGUF file, or a hub repository with one of them."
    )
    to: Literal["gguf", "peft"] = option(
        ...,
        "--to",
        metavar="gguf|peft",
        help="What it becomes: a GGUF file as llama.cpp reads it, or a folder of peft.",
    )
    base: str = option(
        ..., "--base", metavar="MODEL", help="The model that it was made for: a hub repository, a folder or a file."
    )
    out: Path = option(..., "--out", metavar="PATH", help="The file or folder to write.")
    filename: str | None = _adapter_file()
    gqa: int | None = gqa_option()
    force: bool = option(False, "--force", help="Replace what is there.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingsOptions:
    """What stands after ``adapter scalings``, before a row."""

    prompt: str = option(..., "--prompt", metavar="TEXT", help="The text whose tokens are weighed, as it stands.")
    svg: Path | None = option(None, "--svg", metavar="FILE", help="Draw the means over the layers in this picture.")
    json: bool = option(False, "--json", help="One JSON object with the weights of each layer instead of a table.")
    force: bool = _force()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMergeOptions:
    """What stands after ``adapter merge``."""

    model: str = argument(..., metavar="MODEL", help="The base model: a hub repository, a folder or a file.")
    adapters: list[str] = argument(
        ...,
        metavar="ADAPTER[:W]...",
        help="The adapters, each as a folder, a GGUF file or a hub repository; W: weight.",
    )
    out: Path = option(..., "--out", metavar="PATH", help="The GGUF file to write, or the new folder of safetensors.")
    type: str | None = option(
        None, "--type", metavar="TYPE", help="What the weights of safetensors become in a GGUF file, as of quantize."
    )
    force: bool = option(False, "--force", help="Replace a file that is there.")


ModelToolOptions = (
    InspectOptions
    | ModelsOptions
    | ChatsOptions
    | QuantizeOptions
    | OrderingCreateOptions
    | OrderingRenameOptions
    | AdapterInspectOptions
    | AdapterConvertOptions
    | AdapterMergeOptions
)
"""The options of the subcommands that need no model in this process."""
