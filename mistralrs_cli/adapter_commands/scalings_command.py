"""Shows how X-LoRA mixes its adapters for each token of a prompt: a table, JSON, a picture."""

from __future__ import annotations

import json

from mistralrs.api.loaded_adapters.scalings import ScalingNames, choice_scalings
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Failed, Scalings
from mistralrs.errors import EngineError, RequestError
from mistralrs.loading.new_file import new_file
from mistralrs_cli.adapter_commands.mean_scalings import mean_scalings, table
from mistralrs_cli.adapter_commands.scalings_picture import picture
from mistralrs_cli.arguments.invocation import ScalingsJob
from mistralrs_cli.model import Model
from mistralrs_cli.printing.answer import Interruption
from mistralrs_cli.terminal.output import Streams, clean_line


def run_scalings(model: Model, job: ScalingsJob, streams: Streams) -> int:
    """Computes the prompt and writes its scalings; returns the exit code.

    Raises ``RequestError`` for a model that is no X-LoRA and for a prompt that cannot be computed.
    """
    axes = model.known_adapters().require_scalings()
    scalings = _scalings(model, job)
    means = mean_scalings(scalings, axes, model.tokenizer)
    if job.svg is not None:
        drawn = picture(means).encode()
        with new_file(job.svg, len(drawn)) as put:
            put(memoryview(drawn))
        streams.stderr.write(f"{clean_line(str(job.svg))}: {len(means.tokens)} tokens\n")
    if job.json:
        streams.stdout.write(json.dumps(choice_scalings(scalings, ScalingNames(axes, model.tokenizer))) + "\n")
    else:
        streams.stdout.writelines(f"{line}\n" for line in table(means))
    if scalings.omitted_tokens:
        streams.stderr.write(f"{scalings.omitted_tokens} later tokens are left out: they are too many\n")
    streams.stdout.flush()
    streams.stderr.flush()
    return 0


def _scalings(model: Model, job: ScalingsJob) -> Scalings:
    tokenizer = model.tokenizer
    prompt = tokenizer.encode(job.prompt, special=True, bos=tokenizer.add_bos)
    if not prompt:
        raise RequestError("the prompt is empty", hint='mistralrs adapter scalings --prompt "TEXT" ROW')
    found = None
    with Interruption() as interruption:
        # one token has to be sampled; it has no scalings itself
        sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        for event in interruption.watch(model.complete(prompt, sampling, scalings=True)):
            if isinstance(event, Scalings):
                found = event
            elif isinstance(event, Failed):
                raise event.error
    if interruption.happened:
        raise KeyboardInterrupt
    if found is None:
        raise EngineError("no scalings came", hint="report this, with the output of --log-level debug")
    return found
