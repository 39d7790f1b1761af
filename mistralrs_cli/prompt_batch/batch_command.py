"""Answers the prompts of a file in one batch, in their order, to stdout or to a file that a later run continues."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TextIO

from mistralrs.api.load_options import LoadOptions
from mistralrs.errors import EngineError, LoadError, MistralrsError, UsageError
from mistralrs_cli.commands.shell_jobs import BatchJob
from mistralrs_cli.model import AnswerStream, LostModelError, Model
from mistralrs_cli.printing.answer import Interruption, relay
from mistralrs_cli.printing.answer_output import AnswerOutput, CodeOutput, JsonOutput, TextOutput
from mistralrs_cli.printing.answer_record import Record, write_record
from mistralrs_cli.printing.thoughts import thinking_of
from mistralrs_cli.prompt_batch.answer_window import AnswerWindow
from mistralrs_cli.prompt_batch.prompt_lines import PromptLine, digest, prompt_lines
from mistralrs_cli.prompt_batch.result_file import KeptRecord, ResultFile, ResultFileError
from mistralrs_cli.terminal.exits import INTERRUPTED
from mistralrs_cli.terminal.output import SEPARATOR, ProgressLine, Streams, is_terminal, print_error

FAILED_LINES = 1
"""The exit code of a batch in which some lines have an error instead of an answer."""
_LOADING = ("chat_template", "isq", "dtype", "precision", "kv_cache_dtype")
"""The options of loading that change answers."""


def run_batch(model: Model, job: BatchJob, streams: Streams, *, load: LoadOptions | None) -> int:
    """Answers every line, and returns the exit code. ``load``: the options of a model that was loaded.

    Raises ``UsageError`` for a file of answers that belongs to other prompts or options.
    """
    with contextlib.ExitStack() as stack:
        name = "stdin" if job.source is None else str(job.source)
        # an end of a line is recognised where the text is decoded
        file = streams.stdin if job.source is None else stack.enter_context(job.source.open(encoding="utf-8"))
        prompts = prompt_lines(file, job.template, name=name)
        batch = _Batch(model, job, streams, options=_options_digest(model, job, load))
        if job.out is not None:
            batch.out = stack.enter_context(ResultFile(job.out, overwrite=job.overwrite))
        return batch.run(prompts, name=name, total=_line_count(job, streams.stderr))


@dataclass(slots=True)
class _Count:
    lines: int = 0
    """Lines answered or failed, by this run and by those before."""
    failed: int = 0
    last: int = 0
    """The number of the last of them."""
    tokens: int = 0
    """Tokens that this run sampled."""


class _Batch:
    def __init__(self, model: Model, job: BatchJob, streams: Streams, *, options: str) -> None:
        self.out: ResultFile | None = None
        self._model = model
        self._name = model.info.name
        self._job = job
        self._streams = streams
        self._options = options
        self._sampling = job.sampling
        self._count = _Count()
        self._started = time.monotonic()
        shows_progress = job.out is not None or not is_terminal(streams.stdout)
        self._progress = ProgressLine(streams.stderr) if shows_progress else None

    def run(self, prompts: Iterator[PromptLine], *, name: str, total: int) -> int:
        """Answers what is left. ``name``: the input in errors; ``total``: its lines, 0: not known."""
        code = None
        with Interruption() as interruption:
            try:
                self._skip_answered(prompts, name)
                window = AnswerWindow(prompts, lambda text: interruption.watch(self._ask(text)), size=self._job.window)
                try:
                    for prompt, answer in window:
                        if not self._take(prompt, answer, interruption):
                            break
                        window.done()
                        self._show_progress(total)
                finally:
                    window.close()
            except KeyboardInterrupt:
                interruption.happened = True
            except UsageError:
                raise
            except MistralrsError as error:
                self._clear_progress()
                print_error(self._streams.stderr, error)
                code = error.exit_code
        self._clear_progress()
        self._sum_up(stopped=interruption.happened or code is not None)
        if interruption.happened:
            return INTERRUPTED
        return code or (FAILED_LINES if self._count.failed else 0)

    def _skip_answered(self, prompts: Iterator[PromptLine], name: str) -> None:
        """Passes over the prompts that the file of answers has, and continues with its seed."""
        if self.out is None:
            return
        for record in self.out.records():
            self._check(record, next(prompts, None), name)
            if not self._job.seed_is_given:
                self._sampling = replace(self._sampling, seed=record.seed)
            self._count.lines += 1
            self._count.failed += record.failed
            self._count.last = record.line

    def _check(self, record: KeptRecord, prompt: PromptLine | None, name: str) -> None:
        out, hint = self._job.out, "--overwrite starts anew, or name another file with --out"
        if record.options != self._options:
            what = "another model or other options (sampling, seed, --system, --template, -c, -t, ...)"
            raise UsageError(f"{out} was made with {what}", hint=f"give the same ones; {hint}")
        if prompt is None:
            raise UsageError(f"{out} has an answer to line {record.line}, which {name} does not have", hint=hint)
        if (prompt.number, prompt.digest) != (record.line, record.digest):
            raise UsageError(f"{out} answers another line {record.line} than that of {name}", hint=hint)

    def _ask(self, text: str) -> AnswerStream:
        messages = [{"role": "system", "content": self._job.system}] if self._job.system is not None else []
        messages.append({"role": "user", "content": text})
        return self._model.chat(
            messages,
            self._sampling,
            truncate=self._job.truncate,
            grammar=self._job.grammar,
            thinking=thinking_of(self._job.think),
        )

    def _take(self, prompt: PromptLine, answer: AnswerStream | MistralrsError, interruption: Interruption) -> bool:
        """Writes an answer or its error. Returns False for one that Ctrl-C cut short, which counts as not asked.

        Raises an error that later prompts would have too.
        """
        output = self._open_output(prompt, answer)
        try:
            if isinstance(answer, MistralrsError):
                raise answer
            finished = relay(answer, output, output.thoughts if isinstance(output, JsonOutput) else None)
            if interruption.happened and finished.reason == "cancelled":
                if self._is_text:
                    output.end(finished)  # a line feed after what is shown
                return False
            output.end(finished)
            self._count.tokens += finished.usage.completion_tokens
        except MistralrsError as error:
            if _ends_batch(error, was_asked=not isinstance(answer, MistralrsError)):
                if self._is_text:
                    output.fail(error)  # a line feed after what is shown
                raise
            self._fail(prompt, error, output)
        finally:
            if not isinstance(answer, MistralrsError):
                interruption.unwatch(answer)
        self._count.lines += 1
        self._count.last = prompt.number
        return True

    @property
    def _is_text(self) -> bool:
        return not self._job.form.json

    def _fail(self, prompt: PromptLine, error: MistralrsError, output: AnswerOutput) -> None:
        self._count.failed += 1
        output.fail(error)
        if self._is_text:
            named = MistralrsError(f"line {prompt.number}: {error.message}", hint=error.hint)
            print_error(self._streams.stderr, named)

    def _open_output(self, prompt: PromptLine, answer: AnswerStream | MistralrsError) -> AnswerOutput:
        stdout = self._streams.stdout
        if self._job.form.json:
            fields: Record = {"line": prompt.number, "digest": prompt.digest, "options": self._options}
            fields["seed"] = self._sampling.seed
            return JsonOutput(self._job.form, self._write_record, model=self._name, fields=fields)
        if self._count.lines:
            stdout.write(f"{SEPARATOR}\n")
        if self._job.form.extract_code:
            return CodeOutput(stdout, _nothing if isinstance(answer, MistralrsError) else answer.cancel)
        return TextOutput(stdout)

    def _write_record(self, record: Record) -> None:
        if self.out is None:
            write_record(self._streams.stdout, record)
        else:
            self.out.append(record)

    def _show_progress(self, total: int) -> None:
        if self._progress is not None:
            failed = f", {self._count.failed} failed" if self._count.failed else ""
            self._progress(f"{self._count.lines} answered{failed}", self._count.last, total)

    def _clear_progress(self) -> None:
        if self._progress is not None:
            self._progress.clear()

    def _sum_up(self, *, stopped: bool) -> None:
        """Says on stderr how far the batch came, if there is something to say."""
        count, stderr = self._count, self._streams.stderr
        lines: list[str] = []
        if stopped:
            goes_on = "; the same command goes on from there" if self.out is not None else ""
            lines.append(f"stopped after line {count.last}{goes_on}")
        if count.failed:
            lines.append(f"{count.failed} of {count.lines} lines failed")
        if self._job.stats or is_terminal(stderr):
            seconds = time.monotonic() - self._started
            rate = count.tokens / seconds if seconds else 0.0
            lines.append(f"{count.lines} lines, {count.tokens} tokens in {seconds:.1f} s, {rate:.1f} tok/s")
            lines.append(f"Seed = {self._sampling.seed}")
        stderr.writelines(f"{line}\n" for line in lines)
        stderr.flush()


def _nothing() -> None:
    """Cancels an answer that there is none of."""


def _ends_batch(error: MistralrsError, *, was_asked: bool) -> bool:
    """Returns whether the prompts after this one would fail too: the engine takes none, or the file of answers is
    full."""
    if isinstance(error, EngineError) and not was_asked:
        return True
    return isinstance(error, LoadError | LostModelError | ResultFileError)


def _options_digest(model: Model, job: BatchJob, load: LoadOptions | None) -> str:
    """Returns a hash of all that decides the answers besides the prompts."""
    sampling = asdict(job.sampling)
    if not job.seed_is_given:
        del sampling["seed"]
    info = model.info
    facts = {
        "model": [info.name, info.architecture, info.quantization],
        "adapters": sorted(model.known_adapters().active.items()),
        "load": {name: getattr(load, name) for name in _LOADING} if load else None,
        "sampling": sampling,
        "system": job.system,
        "grammar": asdict(job.grammar) if job.grammar else None,
        "template": str(job.template),
        "truncate": job.truncate,
        "thinking": thinking_of(job.think),
        "extract_code": job.form.extract_code,
    }
    return digest(json.dumps(facts, sort_keys=True, default=str))[:16]


def _line_count(job: BatchJob, stderr: TextIO) -> int:
    """Returns the number of lines of a file, for a person who looks at the progress; 0: not known."""
    if job.source is None or not job.source.is_file() or not is_terminal(stderr):
        return 0
    with job.source.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
