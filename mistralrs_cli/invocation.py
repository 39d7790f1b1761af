"""What the words of a command line ask for: refuses what does not fit together, fills in the defaults of a mode.

Looks whether a local file is there, so that this is said before anything slow begins. Loads nothing, runs nothing.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mistralrs.api.local_model import LoadOptions, ModelSource
from mistralrs.api.schemas.sentinels import (
    LARGEST_SEED,
    LEAST_MAX_TOKENS,
    LEAST_SEED,
    MAX_INT,
    max_tokens_of,
    seed_of,
    top_k_of,
)
from mistralrs.api.selectors.model_choice import check_together, in_situ_type, repeat_last_n_of, template_of
from mistralrs.engine.admission import RANGES
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import UsageError
from mistralrs.quant.quantize import isq_type
from mistralrs_cli.command_line import ParsedArgs, Selection
from mistralrs_cli.global_options import GlobalOptions, given
from mistralrs_cli.option import ALL, Mode
from mistralrs_cli.options import InspectOptions, ModelsOptions, QuantizeOptions
from mistralrs_cli.serve import ServeJob, serve_job
from mistralrs_cli.source_options import FORMATTER, choice_of, find_source, source_at
from mistralrs_cli.stdin_text import without_mark
from mistralrs_cli.values import byte_count, check_range, number, shortened

CHAT_MAX_TOKENS = 4096
PROMPT_MAX_TOKENS = 128
MAX_SEQS = 16
SAMPLING = SamplingParams(temperature=0.1, top_k=32, top_p=0.1, frequency_penalty=0.1, presence_penalty=0.1)
"""How the terminal draws unless told otherwise."""


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A conversation in the terminal, or one turn a line when stdin is a pipe."""

    sampling: SamplingParams
    system: str | None
    truncate: bool
    stats: bool


@dataclass(frozen=True, slots=True)
class PromptJob:
    """One prompt, answered ``copies`` times; copy i draws with seed + i."""

    prompt: str
    """``-`` is stdin."""
    append_stdin: bool
    """A piped stdin is context."""
    copies: int
    sampling: SamplingParams
    system: str | None
    truncate: bool
    stats: bool


@dataclass(frozen=True, slots=True)
class BenchJob:
    """Speed of prompts of ``n_prompt`` tokens and of generating ``n_gen`` tokens; 0 leaves a test out."""

    n_prompt: int
    n_gen: int
    concurrency: tuple[int, ...]
    repetitions: int
    json: bool
    sampling: SamplingParams


Job = ChatJob | PromptJob | BenchJob


@dataclass(frozen=True, slots=True)
class InspectJob:
    """What to say of which model, and how."""

    source: ModelSource
    token_source: str
    json: bool


@dataclass(frozen=True, slots=True)
class ModelsJob:
    """List the models that are here, or delete one."""

    delete: str | None
    """The repository; None: list."""
    yes: bool
    json: bool


@dataclass(frozen=True, slots=True)
class Invocation:
    """A job and the model to do it with."""

    job: Job
    source: ModelSource
    load: LoadOptions


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """Write ``source`` to ``out`` with weights of ``type``, a key of ``quant.quantize.ISQ_TYPES``."""

    source: ModelSource
    token_source: str
    out: Path
    type: str


UtilityCommand = InspectJob | ModelsJob | QuantizeJob | ServeJob
"""What needs no model in this process."""


def resolve(args: ParsedArgs) -> Invocation | UtilityCommand:
    """The task that a command line asks for. Raises ``UsageError``, and ``LoadError`` when a local file is missing."""
    mode = _mode(args)
    options = args.options
    if args.tool is not None:
        return _utility_command(args.tool, options.token_source or LoadOptions().token_source)
    if mode is Mode.SERVE:
        defaults = SamplingParams(repeat_last_n=_repeat_last_n(args.selection))
        return serve_job(options, find_source(args.selection), _load_options(args, None), defaults)
    sampling = _sampling(options, args.selection)
    job: Job
    if mode is Mode.CHAT:
        job = ChatJob(sampling, _system(options), options.truncate_sequence, options.stats)
    elif mode is Mode.PROMPT:
        job = _prompt_job(options, sampling)
    else:
        job = _bench_job(args, sampling)
    return Invocation(job, find_source(args.selection), _load_options(args, job))


def writes_answers(task: Invocation | UtilityCommand) -> bool:
    """Whether what is asked for goes to stdout; serving, quantising and deleting bring nothing to read there."""
    if isinstance(task, ModelsJob):
        return task.delete is None
    return isinstance(task, Invocation | InspectJob)


def _mode(args: ParsedArgs) -> Mode:
    """The one mode that was asked for; refuses every option that would mean nothing in it."""
    options = args.options
    asked = {
        Mode.CHAT: options.interactive_mode,
        Mode.PROMPT: options.prompt is not None,
        Mode.SERVE: options.port is not None,
        Mode.BENCH: args.bench is not None,
        Mode.INSPECT: isinstance(args.tool, InspectOptions),
        Mode.MODELS: isinstance(args.tool, ModelsOptions),
        Mode.QUANTIZE: isinstance(args.tool, QuantizeOptions),
    }
    modes = [mode for mode, is_asked in asked.items() if is_asked]
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(mode.value for mode in modes)} exclude each other", hint="choose one of them")
    mode = modes[0] if modes else None
    for name, meant_in in given(options).items():
        if meant_in != ALL and mode not in meant_in:
            needs = " or ".join(each.value for each in Mode if each in meant_in)
            raise UsageError(f"{name} needs {needs}", hint=f"add it, or leave {name} out")
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


def _utility_command(options: InspectOptions | ModelsOptions | QuantizeOptions, token_source: str) -> UtilityCommand:
    if isinstance(options, InspectOptions):
        source = source_at(options.source, options.filename, gqa=options.gqa or 1)
        return InspectJob(source, token_source, options.json)
    return _models_job(options) if isinstance(options, ModelsOptions) else _quantize_job(options, token_source)


def _quantize_job(words: QuantizeOptions, token_source: str) -> QuantizeJob:
    wanted = isq_type(words.type).name.lower()
    if words.out.suffix != ".gguf":
        raise UsageError(f"{words.out} is to be a GGUF file", hint="give it a name that ends in .gguf")
    if words.out.exists():
        raise UsageError(f"{words.out} is there already", hint="remove it, or give another name")
    if not words.out.parent.is_dir():
        raise UsageError(f"{words.out.parent} is no folder", hint="make it first")
    return QuantizeJob(source_at(words.source, None), token_source, words.out, wanted)


def _models_job(words: ModelsOptions) -> ModelsJob:
    if words.action == "list":
        if words.name or words.yes:
            extra = words.name or "--yes"
            raise UsageError(f"models list takes no {extra}", hint="mistralrs models delete OWNER/NAME deletes a model")
        return ModelsJob(None, yes=False, json=words.json)
    if not words.name:
        raise UsageError("models delete needs the name of a model", hint="mistralrs models lists them")
    if words.json:
        raise UsageError("--json is for the list", hint="leave it out")
    return ModelsJob(words.name, yes=words.yes, json=False)


def _prompt_job(options: GlobalOptions, sampling: SamplingParams) -> PromptJob:
    assert options.prompt is not None
    if options.prompt == "-" and options.no_stdin:
        raise UsageError("--prompt - reads stdin, --no-stdin forbids it", hint="leave one of them out")
    return PromptJob(
        prompt=options.prompt,
        append_stdin=not options.no_stdin,
        copies=options.prompt_concurrency or 1,
        sampling=sampling,
        system=_system(options),
        truncate=options.truncate_sequence,
        stats=options.stats,
    )


def _system(options: GlobalOptions) -> str | None:
    return None if options.system is None else without_mark(options.system)


def _bench_job(args: ParsedArgs, sampling: SamplingParams) -> BenchJob:
    bench = args.bench
    assert bench is not None
    if bench.n_prompt == 0 and bench.n_gen == 0:
        raise UsageError("-p 0 and -n 0 leave nothing to measure", hint="give one of them some tokens")
    if bench.n_gen == 1:
        raise UsageError("-n 1 measures nothing: the first token comes with the prompt", hint="give -n 2 or more, or 0")
    return BenchJob(
        n_prompt=bench.n_prompt,
        n_gen=bench.n_gen,
        concurrency=_concurrency(bench.concurrency),
        repetitions=bench.repetitions,
        json=bench.json,
        sampling=sampling,
    )


def _concurrency(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--concurrency {text}: not a list of counts", hint="write it as 1,2,4")
    return tuple(int(part) for part in parts)


def _sampling(options: GlobalOptions, selection: Selection | None) -> SamplingParams:
    """The seed, penalties and limits of one answer; the numbers are checked here, before anything is loaded."""
    if options.stop and "" in options.stop:
        raise UsageError("--stop '' would stop every answer at once", hint="give the text to stop at")
    check_range("--seed", options.seed, LEAST_SEED, LARGEST_SEED)
    return SamplingParams(
        temperature=_real("--temperature", "temperature", options.temperature),
        top_k=top_k_of(int(number("--top-k", options.top_k, SAMPLING.top_k, -1, MAX_INT))),
        top_p=_real("--top-p", "top_p", options.top_p),
        min_p=_real("--min-p", "min_p", options.min_p),
        repetition_penalty=_real("--repeat-penalty", "repetition_penalty", options.repeat_penalty),
        frequency_penalty=_real("--frequency-penalty", "frequency_penalty", options.frequency_penalty),
        presence_penalty=_real("--presence-penalty", "presence_penalty", options.presence_penalty),
        repeat_last_n=_repeat_last_n(selection),
        seed=seed_of(options.seed),
        max_tokens=_max_tokens(options),
        stop=tuple(options.stop or ()),
    )


def _max_tokens(options: GlobalOptions) -> int | None:
    if options.max_tokens is not None and options.prompt_max_tokens is not None:
        raise UsageError("--max-tokens and --prompt-max-tokens say the same", hint="give one of them")
    for name, value in (("--max-tokens", options.max_tokens), ("--prompt-max-tokens", options.prompt_max_tokens)):
        if value is not None:
            if value == 0 or not LEAST_MAX_TOKENS <= value <= MAX_INT:
                hint = f"it must be from 1 to {MAX_INT}, or -1 for no limit but the context"
                raise UsageError(f"{name} {shortened(value)} is out of range", hint=hint)
            return max_tokens_of(value)
    return CHAT_MAX_TOKENS if options.prompt is None else PROMPT_MAX_TOKENS


def _real(name: str, parameter: str, value: float | None) -> float:
    """The value of a sampling option, in the range that the parameter has everywhere."""
    default: float = getattr(SAMPLING, parameter)
    return number(name, value, default, RANGES[parameter].least, RANGES[parameter].most)


def _repeat_last_n(selection: Selection | None) -> int:
    return SAMPLING.repeat_last_n if selection is None else repeat_last_n_of(choice_of(selection))


def _load_options(args: ParsedArgs, job: Job | None) -> LoadOptions:
    """``job``: None is serving."""
    options = args.options
    defaults = LoadOptions()
    max_draft = options.draft
    if isinstance(job, BenchJob):
        max_seqs, prefix_cache_n = max(job.concurrency), 0
        if max_draft is None:  # what is measured is the model, not how often its text repeats itself
            max_draft = 0
    else:
        copies = job.copies if isinstance(job, PromptJob) else 1
        max_seqs = options.max_seqs or max(MAX_SEQS, copies)
        prefix_cache_n = defaults.prefix_cache_n if options.prefix_cache_n is None else options.prefix_cache_n
    choice = choice_of(args.selection) if args.selection else None
    _check_together(options)
    return LoadOptions(
        max_seqs=max_seqs,
        prefix_cache_n=prefix_cache_n,
        no_kv_cache=options.no_kv_cache,
        max_draft=max_draft,
        kv_memory=byte_count("--kv-memory", options.kv_memory) if options.kv_memory else defaults.kv_memory,
        kv_dir=options.kv_dir,
        kv_dir_bytes=byte_count("--kv-dir-size", options.kv_dir_size) if options.kv_dir_size else defaults.kv_dir_bytes,
        chat_template=options.chat_template or (template_of(choice) if choice else None),
        tokenizer_json=choice.tokenizer_json if choice else None,
        tok_model_id=choice.tok_model_id if choice else None,
        token_source=options.token_source or defaults.token_source,
        precision=options.precision or defaults.precision,
        threads=options.threads,
        dtype=options.dtype or defaults.dtype,
        isq=in_situ_type(options.isq, choice.selector if choice else None, FORMATTER),
    )


def _check_together(options: GlobalOptions) -> None:
    if options.kv_dir_size and options.kv_dir is None:
        raise UsageError("--kv-dir-size needs --kv-dir", hint="name the folder, or leave the size out")
    check_together(
        kv_dir=options.kv_dir is not None,
        no_kv_cache=options.no_kv_cache,
        prefix_cache_n=options.prefix_cache_n,
        max_draft=options.draft,
        formatter=FORMATTER,
    )
