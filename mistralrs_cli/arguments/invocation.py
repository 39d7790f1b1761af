"""Resolves a parsed command line to a job: refuses contradictions and fills in the defaults of a mode.

It checks whether a local file exists, so that the error comes before anything slow begins. It loads and runs nothing.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.options.answer_options import CHAT_MAX_TOKENS, PROMPT_MAX_TOKENS
from mistralrs.api.options.config_file import read_config
from mistralrs.api.options.declarations import DECLARED, DEFAULTS, Options
from mistralrs.api.options.option import ALL, Mode
from mistralrs.api.options.resolve import Origin, ResolvedOptions, resolve_options
from mistralrs.api.schemas.sentinels import max_tokens_of, seed_of, top_k_of
from mistralrs.api.selectors.model_choice import (
    check_kv_cache_dtype,
    check_together,
    in_situ_type,
    repeat_last_n_of,
    template_of,
)
from mistralrs.api.selectors.named_adapters import find_adapters
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import UsageError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs_cli.adapter_commands.adapter_settings import adapter_settings
from mistralrs_cli.arguments.command_line import ParsedArgs, Selection
from mistralrs_cli.arguments.grammar_option import grammar_of
from mistralrs_cli.arguments.look_of import look_of
from mistralrs_cli.arguments.own_sampling import given_sampling
from mistralrs_cli.arguments.server_choice import server_choice
from mistralrs_cli.arguments.source_options import CommandLineErrorFormatter, choice_of, find_source, source_at
from mistralrs_cli.chat_storage.kept_kv import LIMIT_BYTES
from mistralrs_cli.commands.shell_jobs import BatchJob, ChatJsonlJob, batch_job
from mistralrs_cli.markdown_screen.answer_display import AUTOMATIC, Look
from mistralrs_cli.printing.answer_output import AnswerForm
from mistralrs_cli.printing.thoughts import Think
from mistralrs_cli.terminal.stdin_text import without_mark

if TYPE_CHECKING:
    from mistralrs_cli.arguments.command_line import UtilityOptions
    from mistralrs_cli.benchmark.old_results import OldResult
    from mistralrs_cli.commands.utility_jobs import UtilityCommand
    from mistralrs_cli.commands.utility_options import ScalingsOptions
    from mistralrs_cli.server_client.remote_model import ServerChoice


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A conversation in the terminal, or one turn for each line when stdin is a pipe."""

    sampling: SamplingParams
    system: str | None
    truncate: bool
    stats: bool
    grammar: GrammarText | None = None
    think: Think | None = None
    save: bool = True
    """Keep the chat and its KV."""
    resume: str | None = None
    """The name or number of a saved chat to go on with; empty: the last one, None: a new chat."""
    look: Look = AUTOMATIC
    allow_net: bool = False
    """Messages may attach pages of the web."""
    policy: Literal["full", "slide", "compact"] = "full"
    """What happens when the context is full."""
    context: str | None = None
    """A text from a pipe that belongs to the first message."""
    keeps_history: bool = True
    """Typed entries are kept for later chats."""
    written: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The options that were given, by their names, as the user wrote them."""


@dataclass(frozen=True, slots=True)
class PromptJob:
    """One prompt, answered ``copies`` times; copy i samples with seed + i."""

    prompt: str
    """``-`` is stdin."""
    append_stdin: bool
    """The text of a piped stdin is added to the prompt."""
    copies: int
    sampling: SamplingParams
    system: str | None
    truncate: bool
    stats: bool
    form: AnswerForm
    grammar: GrammarText | None = None
    think: Think | None = None
    fails_on_length: bool = False
    """An answer that its limit stopped has an exit code of its own."""


@dataclass(frozen=True, slots=True)
class BenchJob:
    """Measures prompts of ``n_prompt`` tokens and the generation of ``n_gen`` tokens; 0 leaves a test out."""

    n_prompt: int
    n_gen: int
    concurrency: tuple[int, ...]
    repetitions: int
    json: bool
    sampling: SamplingParams
    old: Mapping[tuple[str, int], OldResult] | None = None
    """Older results to compare with, by test and concurrency."""


@dataclass(frozen=True, slots=True)
class ScalingsJob:
    """Shows the scalings of a prompt's tokens."""

    prompt: str
    svg: Path | None
    """The picture to write."""
    json: bool


Job = ChatJob | PromptJob | BatchJob | ChatJsonlJob | BenchJob | ScalingsJob


@dataclass(frozen=True, slots=True)
class RemoteInvocation:
    """A job and the server to do it with."""

    job: Job
    server: ServerChoice
    given: frozenset[str] = frozenset()
    """The fields of the sampling parameters that the user gave; the model's own replace the others."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """A job and the model to do it with."""

    job: Job
    source: ModelSource
    load: LoadOptions
    given: frozenset[str] = frozenset()
    """The fields of the sampling parameters that the user gave; the model's own replace the others."""


def resolve(args: ParsedArgs, options: ResolvedOptions | None = None) -> Invocation | RemoteInvocation | UtilityCommand:
    """Returns the job that a command line describes. ``options``: None merges them as ``options_of`` does.

    Raises ``UsageError``, and ``LoadError`` when a local file is missing.
    """
    options = options or options_of(args)
    values = options.values
    if args.tool is not None:
        return _tool_job(args.tool, options)
    mode = mode_of(args)
    if mode is Mode.SERVE:
        from mistralrs_cli.commands.serve import serve_job

        defaults = SamplingParams(repeat_last_n=_repeat_last_n(args.selection))
        return serve_job(options, find_source(args.selection), _load_options(args, options, None), defaults)
    job: Job
    if args.scalings is not None:
        return _scalings_invocation(args, args.scalings, options)
    sampling = _sampling(options, args.selection)
    if mode is Mode.CHAT:
        job = _chat_job(options, sampling)
    elif mode is Mode.PROMPT:
        job = _prompt_job(values, sampling)
    elif mode is Mode.BATCH:
        job = batch_job(values, sampling, max_seqs=values.max_seqs)
    elif mode is Mode.CHAT_JSONL:
        job = ChatJsonlJob(sampling, _system(values), values.truncate_sequence, grammar_of(values), values.think)
    else:
        job = _bench_job(args, sampling)
    server = server_choice(options, args, mode)
    if server is not None:
        return RemoteInvocation(job, server, given_sampling(options))
    source = find_source(args.selection)
    return Invocation(job, source, _load_options(args, options, job), given_sampling(options))


def _tool_job(tool: UtilityOptions, options: ResolvedOptions) -> UtilityCommand:
    """Returns the job of a subcommand that needs no model in this process."""
    from mistralrs_cli.commands.utility_jobs import utility_command
    from mistralrs_cli.diagnosis.diagnosis_jobs import diagnosis_job
    from mistralrs_cli.diagnosis.diagnosis_options import DiagnosisOptions

    if isinstance(tool, DiagnosisOptions):
        return diagnosis_job(tool, options)
    values = options.values
    formatter = CommandLineErrorFormatter({name: options.written(name) for name in options.origins})
    check_kv_cache_dtype(values.kv_cache_dtype, formatter, precision=values.precision, dtype=values.dtype)
    return utility_command(
        tool,
        values.token_source or DEFAULTS.token_source,
        precision=values.precision,
        kv_cache_dtype=values.kv_cache_dtype,
    )


def options_of(args: ParsedArgs) -> ResolvedOptions:
    """Returns the merged options of a command line, of the process's environment and of the config file.

    Raises ``UsageError``, also for a command line with no mode or with several.
    """
    mode = mode_of(args)
    return resolve_options(args.flags, mode=mode, environment=os.environ, config=read_config(os.environ))


def writes_answers(task: Invocation | RemoteInvocation | UtilityCommand) -> bool:
    """Returns whether the job writes its result to stdout; serving, writing files and deleting do not."""
    if isinstance(task, Invocation | RemoteInvocation):
        return not isinstance(task.job, BatchJob) or task.job.out is None
    from mistralrs_cli.commands.utility_jobs import tool_writes_answers

    return tool_writes_answers(task)


def mode_of(args: ParsedArgs) -> Mode:
    """Returns the mode of the command line. Raises ``UsageError`` for a typed option that has no effect in it."""
    asked = {
        Mode.CHAT: "interactive_mode" in args.flags,
        Mode.PROMPT: "prompt" in args.flags,
        Mode.BATCH: "prompt_file" in args.flags,
        Mode.CHAT_JSONL: "chat_jsonl" in args.flags,
        Mode.SERVE: "port" in args.flags,
        Mode.BENCH: args.bench is not None,
        Mode.SCALINGS: args.scalings is not None,
    }
    modes = [mode for mode, is_asked in asked.items() if is_asked]
    if args.tool is not None:
        from mistralrs_cli.commands.utility_jobs import mode_of_tool

        modes.append(mode_of_tool(args.tool))
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(mode.value for mode in modes)} exclude each other", hint="choose one of them")
    mode = modes[0] if modes else None
    for name in args.flags:
        flag, meant_in = DECLARED[name].flags[0], DECLARED[name].modes
        is_shown = mode is Mode.CONFIG and DECLARED[name].is_shared
        if meant_in != ALL and mode not in meant_in and not is_shown:
            needs = " or ".join(each.value for each in Mode if each in meant_in)
            raise UsageError(f"{flag} needs {needs}", hint=f"add it, or leave {flag} out")
    if mode is None:
        raise UsageError("say what to do", hint=_commands(args.subcommand))
    return mode


def _commands(subcommand: tuple[str, ...]) -> str:
    row = "".join(f" {shlex.quote(word)}" for word in subcommand)
    commands = (
        (f"mistralrs -i{row}", "chat in the terminal"),
        (f'mistralrs --prompt "..."{row}', "one answer on stdout"),
        (f"mistralrs --port 1234{row}", "serve OpenAI's API"),
        (f"mistralrs bench{row}", "measure the speed"),
    )
    width = max(len(command) for command, _ in commands)
    return "\n".join(f"{command:<{width}}  {meaning}" for command, meaning in commands)


def _chat_job(options: ResolvedOptions, sampling: SamplingParams) -> ChatJob:
    values = options.values
    return ChatJob(
        sampling,
        _system(values),
        values.truncate_sequence,
        values.stats,
        grammar_of(values),
        values.think,
        save=not values.no_save,
        resume=values.resume,
        look=look_of(values),
        policy=values.context_policy or ("slide" if values.truncate_sequence else "full"),
        allow_net=values.allow_net,
        keeps_history=not values.no_history,
        written={name: options.written(name) for name in options.origins},
    )


def _prompt_job(options: Options, sampling: SamplingParams) -> PromptJob:
    assert options.prompt is not None
    if options.prompt == "-" and options.no_stdin:
        raise UsageError("--prompt - reads stdin, --no-stdin forbids it", hint="leave one of them out")
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other", hint="choose one of them")
    if options.json and options.prompt_concurrency > 1:
        raise UsageError("--json is for one answer", hint="--jsonl writes an object a line for each")
    return PromptJob(
        prompt=options.prompt,
        append_stdin=not options.no_stdin,
        copies=options.prompt_concurrency,
        sampling=sampling,
        system=_system(options),
        truncate=options.truncate_sequence,
        stats=options.stats,
        form=AnswerForm(json=options.json or options.jsonl, extract_code=options.extract_code, look=look_of(options)),
        grammar=grammar_of(options),
        think=options.think,
        fails_on_length=options.fail_on_length,
    )


def _system(options: Options) -> str | None:
    return None if options.system is None else without_mark(options.system)


def _bench_job(args: ParsedArgs, sampling: SamplingParams) -> BenchJob:
    bench = args.bench
    assert bench is not None
    if bench.n_prompt == 0 and bench.n_gen == 0:
        raise UsageError("-p 0 and -n 0 leave nothing to measure", hint="give one of them some tokens")
    if bench.n_gen == 1:
        raise UsageError("-n 1 measures nothing: the first token comes with the prompt", hint="give -n 2 or more, or 0")
    from mistralrs_cli.benchmark.old_results import read_old_results

    return BenchJob(
        n_prompt=bench.n_prompt,
        n_gen=bench.n_gen,
        concurrency=_concurrency(bench.concurrency),
        repetitions=bench.repetitions,
        json=bench.json,
        sampling=sampling,
        old=None if bench.compare is None else read_old_results(bench.compare),
    )


def _scalings_invocation(args: ParsedArgs, words: ScalingsOptions, options: ResolvedOptions) -> Invocation:
    from mistralrs_cli.adapter_commands.adapter_jobs import check_new_file

    if words.svg is not None:
        check_new_file(words.svg, ending=".svg", force=words.force)
    elif words.force:
        raise UsageError("--force is for the picture", hint="name it with --svg, or leave --force out")
    job = ScalingsJob(words.prompt, words.svg, words.json)
    load = _load_options(args, options, job)
    if load.adapters.xlora is None:
        raise UsageError("only X-LoRA has scalings", hint="name a row with --xlora SOURCE, or an x-lora row")
    return Invocation(job, find_source(args.selection), load)


def _concurrency(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--concurrency {text}: not a list of counts", hint="write it as 1,2,4")
    return tuple(int(part) for part in parts)


def _sampling(options: ResolvedOptions, selection: Selection | None) -> SamplingParams:
    """Returns the seed, penalties and limits of one answer."""
    if "" in options.values.stop:
        raise UsageError(
            f"{options.written('stop')} '' would stop every answer at once", hint="give the text to stop at"
        )
    return replace(
        drawing(options.values),
        repeat_last_n=_repeat_last_n(selection),
        seed=seed_of(options.values.seed),
        max_tokens=_max_tokens(options),
        stop=options.values.stop,
    )


def drawing(values: Options) -> SamplingParams:
    """Returns the terminal's sampling parameters with these options."""
    return SamplingParams(
        temperature=values.temperature,
        top_k=top_k_of(values.top_k),
        top_p=values.top_p,
        min_p=values.min_p,
        repetition_penalty=values.repeat_penalty,
        frequency_penalty=values.frequency_penalty,
        presence_penalty=values.presence_penalty,
    )


SAMPLING = drawing(DEFAULTS)
"""The terminal's default sampling parameters."""


def _max_tokens(options: ResolvedOptions) -> int | None:
    values = options.values
    if values.max_tokens is not None and values.prompt_max_tokens is not None:
        raise UsageError("--max-tokens and --prompt-max-tokens say the same", hint="give one of them")
    for value in (values.max_tokens, values.prompt_max_tokens):
        if value is not None:
            return max_tokens_of(value)
    is_one_shot = values.prompt is not None or values.prompt_file is not None
    return PROMPT_MAX_TOKENS if is_one_shot else CHAT_MAX_TOKENS


def _repeat_last_n(selection: Selection | None) -> int:
    return SAMPLING.repeat_last_n if selection is None else repeat_last_n_of(choice_of(selection))


def _load_options(args: ParsedArgs, options: ResolvedOptions, job: Job | None) -> LoadOptions:
    """Returns the options of loading. ``job``: None is serving."""
    values = options.values
    max_seqs, prefix_cache_n, max_draft = values.max_seqs, values.prefix_cache_n, values.max_draft
    if isinstance(job, BenchJob):
        max_seqs, prefix_cache_n = max(job.concurrency), 0
        # a benchmark measures the model, not how often its text repeats itself
        if max_draft is None and values.draft_model is None:
            max_draft = 0
    elif isinstance(job, PromptJob) and options.origin("max_seqs") is Origin.DEFAULT:
        max_seqs = max(max_seqs, job.copies)
    choice = choice_of(args.selection) if args.selection else None
    formatter = CommandLineErrorFormatter({name: options.written(name) for name in options.origins})
    _check_together(options, formatter)
    return LoadOptions(
        max_seqs=max_seqs,
        prefix_cache_n=prefix_cache_n,
        no_kv_cache=values.no_kv_cache,
        max_draft=max_draft,
        draft_model=None if values.draft_model is None else source_at(values.draft_model, None),
        kv_memory=values.kv_memory,
        kv_cache_dtype=values.kv_cache_dtype,
        max_model_len=values.max_model_len,
        kv_dir=values.kv_dir,
        kv_dir_bytes=_kv_dir_bytes(options, job),
        chat_template=values.chat_template or (template_of(choice) if choice else None),
        tokenizer_json=choice.tokenizer_json if choice else None,
        tok_model_id=choice.tok_model_id if choice else None,
        token_source=values.token_source or DEFAULTS.token_source,
        precision=values.precision,
        threads=values.threads,
        dtype=values.dtype,
        isq=in_situ_type(values.isq, choice.selector if choice else None, formatter),
        no_pack=values.no_pack,
        adapters=find_adapters(choice, formatter, options=adapter_settings(options, choice)),
        plugin=values.plugin,
    )


def _kv_dir_bytes(options: ResolvedOptions, job: Job | None) -> int:
    """Returns the size of the folder of KV; a chat without ``--kv-dir`` has a folder of its own."""
    is_own = isinstance(job, ChatJob) and options.values.kv_dir is None
    return LIMIT_BYTES if is_own and options.origin("kv_dir_size") is Origin.DEFAULT else options.values.kv_dir_size


def _check_together(options: ResolvedOptions, formatter: CommandLineErrorFormatter) -> None:
    values = options.values
    is_chat = values.interactive_mode  # has a folder of its own
    if options.origin("kv_dir_size") is Origin.FLAG and values.kv_dir is None and not is_chat:
        raise UsageError("--kv-dir-size needs --kv-dir", hint="name the folder, or leave the size out")
    check_together(
        kv_dir=values.kv_dir is not None,
        no_kv_cache=values.no_kv_cache,
        prefix_cache_n=values.prefix_cache_n,
        max_draft=values.max_draft,
        draft_model=values.draft_model is not None,
        no_pack=values.no_pack,
        isq=values.isq,
        kv_cache_dtype=values.kv_cache_dtype,
        precision=values.precision,
        dtype=values.dtype,
        formatter=formatter,
    )
