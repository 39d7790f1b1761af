"""Answers one prompt; stdout gets the answers and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TextIO

from mistralrs.engine.events import Finished, Usage
from mistralrs.errors import MistralrsError, RequestError
from mistralrs_cli.arguments.invocation import PromptJob
from mistralrs_cli.model import AnswerStream, Model
from mistralrs_cli.printing.answer import Interruption, ThoughtSink, relay
from mistralrs_cli.printing.answer_output import AnswerOutput, JsonOutput, open_output
from mistralrs_cli.printing.prefill_line import ShownPrefill
from mistralrs_cli.printing.thoughts import Thoughts, thinking_of
from mistralrs_cli.terminal.exits import INTERRUPTED, STOPPED_BY_LENGTH
from mistralrs_cli.terminal.output import Streams, is_terminal, per_second, print_error
from mistralrs_cli.terminal.stdin_text import holds_text, read_all, warn_of_waiting, without_mark


def prompt_text(job: PromptJob, stdin: TextIO) -> str:
    """Returns the text of the prompt, and a blank line and stdin's text when stdin is a pipe, a socket or a file.

    Line feeds at the end of stdin are dropped, and byte-order marks at the beginning of both. Raises ``RequestError``
    for an empty prompt and for one that no model can read, and ``MistralrsError`` when stdin cannot be read.
    """
    if job.prompt == "-":
        parts = [_all_of(stdin)]
    elif job.append_stdin and holds_text(stdin):
        warn_of_waiting(stdin)
        parts = [without_mark(job.prompt), _all_of(stdin)]
    else:
        parts = [without_mark(job.prompt)]
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise RequestError("the prompt is empty", hint='mistralrs --prompt "What is the capital of France?"')
    return text


def run_prompt(model: Model, job: PromptJob, text: str, streams: Streams) -> int:
    """Answers ``text`` as often as the job says, in one batch; returns the exit code.

    Answers are in the order of their seeds; one that fails is reported and does not stop the others.
    """
    messages = [{"role": "system", "content": job.system}] if job.system is not None else []
    messages.append({"role": "user", "content": text})
    with Interruption() as interruption:
        answers = [
            interruption.watch(
                model.chat(
                    messages,
                    replace(job.sampling, seed=job.sampling.seed + copy),
                    truncate=job.truncate,
                    grammar=job.grammar,
                    thinking=thinking_of(job.think),
                )
            )
            for copy in range(job.copies)
        ]
        finished, error = _write_answers(answers, job, model, streams)
    if job.stats or is_terminal(streams.stderr):
        _write_stats(finished, job, streams.stderr)
    if interruption.happened:
        return INTERRUPTED
    if error is not None:
        return error.exit_code
    is_cut = any(each.reason == "length" for each in finished)
    return STOPPED_BY_LENGTH if is_cut and job.fails_on_length else 0


def _write_answers(
    answers: Sequence[AnswerStream], job: PromptJob, model: Model, streams: Streams
) -> tuple[list[Finished], MistralrsError | None]:
    """Writes the answers; returns their last events, and the first error."""
    finished = []
    first_error = None
    name = model.info.name
    for number, answer in enumerate(answers):
        output = open_output(job.form, streams.stdout, model=name, number=number, cancel=answer.cancel)
        try:
            finished.append(relay(ShownPrefill(answer, streams.stderr), output, _thoughts(output, job, streams)))
            output.end(finished[-1])
        except MistralrsError as error:
            first_error = first_error or error
            output.fail(error)
            print_error(streams.stderr, error)
    return finished, first_error


def _thoughts(output: AnswerOutput, job: PromptJob, streams: Streams) -> ThoughtSink:
    if isinstance(output, JsonOutput):
        return output.thoughts
    return Thoughts(streams.stderr, shown=job.think == "on")


def _write_stats(finished: Sequence[Finished], job: PromptJob, stderr: TextIO) -> None:
    usages = [each.usage for each in finished]
    prompt = throughput(usages, prompt=True)
    completion = throughput(usages, prompt=False)
    stderr.write(f"Prompt T/s = {prompt}\nCompletion T/s = {completion}\n")
    if job.stats:
        stderr.write(f"Seed = {job.sampling.seed}\n")
        drafted = sum(usage.drafted_tokens for usage in usages)
        if drafted:
            stderr.write(f"Drafts = {sum(usage.accepted_tokens for usage in usages)}/{drafted}\n")
    cut = {each.usage.completion_tokens for each in finished if each.reason == "length"}
    if job.sampling.max_tokens in cut:
        stderr.write(f"stopped at {job.sampling.max_tokens} tokens: --max-tokens allows more\n")
    if cut - {job.sampling.max_tokens}:
        stderr.write("stopped at the end of the model's context\n")
    stderr.flush()


def throughput(usages: Sequence[Usage], *, prompt: bool) -> float:
    """Returns the tokens a second of concurrent requests: all tokens over the mean time of one request."""
    tokens = sum(each.prompt_tokens if prompt else each.completion_tokens for each in usages)
    seconds = sum(each.prompt_s if prompt else each.completion_s for each in usages)
    return per_second(tokens, seconds / max(1, len(usages)))


def _all_of(stdin: TextIO) -> str:
    return read_all(stdin).rstrip("\n")
