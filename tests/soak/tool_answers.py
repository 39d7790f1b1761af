"""Asks servers with random weights for calls and thoughts; a streamed answer must be the whole one.

    python -m tests.soak.tool_answers [--count 300] [--report FILE]

The model of each server writes another form of calls. Requests draw their tools, choice, budget of thinking and
sampling; each is sent twice, whole and streamed, beside others. Calls that are not cut must match their schemas where
they are held to them, content must have no mark, and thoughts must keep their budget. The exit code is 1 if anything is
found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import jsonschema

from mistralrs.api.serving.grammars.thinking_budget import thinking_marks
from mistralrs.text.response.call_format import FORMATS, CallFormat
from mistralrs.text.response.shipped_templates import shipped_template
from tests.api.tooling import HERMES
from tests.serving import RunningServer
from tests.tiny import DEFAULT, write_tiny

CHAT = "/v1/chat/completions"
AT_ONCE = 4
MARKS = 17
"""Tokens of a mark and the space behind it, at most: the tiny vocabulary spells them by characters."""
_TURNS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<START>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<END>\n{% endfor %}"
    "{% if add_generation_prompt %}<START>ANSWER{% endif %}{# MARKERS #}"
)


def _template(start: str, end: str, answer: str, markers: str) -> str:
    parts = {"<START>": start, "<END>": end, "ANSWER": answer, "MARKERS": markers}
    text = _TURNS
    for name, part in parts.items():
        text = text.replace(name, part)
    return text


TEMPLATES = {
    "hermes": HERMES,
    "olmo-3": _template("<|im_start|>", "<|im_end|>", "assistant\n", "<function_calls><think>"),
    "functiongemma": _template("<start_of_turn>", "<end_of_turn>", "model\n", "<start_function_call>"),
    "gemma-3": _template("<start_of_turn>", "<end_of_turn>", "model\n", ""),
    "harmony": _template("<|start|>", "<|end|>", "assistant", "<|channel|><|message|>"),
    "mistral-v3": _template("[INST]", "[/INST]", "[/INST]", "[TOOL_CALLS]"),
}
"""Chat templates by the name of the response template that they get."""
TOOLS = {
    "weather": {
        "type": "object",
        "properties": {"city": {"enum": ["Zürich", "Bern", "東京"]}, "days": {"type": "integer", "maximum": 99}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "note": {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 12}, "deep": {"type": "array", "maxItems": 2}},
        "required": ["text"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}


@dataclass(slots=True)
class Result:
    requests: int = 0
    calls: int = 0
    thoughts: int = 0
    cut: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Adds another form's drill."""
        self.requests += other.requests
        self.calls += other.calls
        self.thoughts += other.thoughts
        self.cut += other.cut
        self.findings += other.findings

    def report(self) -> str:
        """Returns the findings as Markdown."""
        return (
            "# Answers with calls and thoughts, streamed and whole\n\n"
            f"{self.requests} requests to servers with random weights, each whole and streamed, with calls in the "
            f"forms of {', '.join(TEMPLATES)}: {self.calls} calls, {self.thoughts} answers with "
            f"thoughts, {self.cut} cut by max_tokens.\n\n"
            "## Not as it should be\n\n" + ("\n".join(f"- {each}" for each in self.findings) or "Nothing.") + "\n"
        )


def marks_of(form: CallFormat) -> list[str]:
    """Returns the marks that content in a model's answers never has."""
    marks = (form.trigger, form.suffix.strip(), form.think_open, form.think_close, form.note_open, form.text_open)
    return [mark for mark in marks if len(mark) > 3]


def drawn(random: Random, *, budgets: bool = True) -> dict[str, Any]:
    """Returns a body. ``budgets``: the model's thinking can have one."""
    names = random.sample(sorted(TOOLS), random.randint(1, len(TOOLS)))
    named = {"type": "function", "function": {"name": random.choice(names)}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": TOOLS[name], "strict": random.random() < 0.3}}
        for name in names
    ]
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": random.choice(["Hi!", "Weather?", "What time is it?"])}],
        "tools": tools,
        "tool_choice": random.choice(["auto", "required", "required", named, "none"]),
        "parallel_tool_calls": random.random() < 0.7,
        "max_tokens": random.choice([random.randint(1, 250), 400]),
        "seed": random.randrange(1 << 30),
        "temperature": random.choice([0, 0.8, 1.5]),
        "chat_template_kwargs": {"enable_thinking": random.random() < 0.5},
    }
    if budgets and random.random() < 0.6:
        body["thinking_token_budget"] = random.randint(0, 30)
    if random.random() < 0.2:
        body["stop"] = random.choice(["e", "}}", "<"])
    return body


def whole(server: RunningServer, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = server.ask("POST", CHAT, body)
    if status != 200:
        return {"error": answer}
    [choice] = answer["choices"]
    message = choice["message"]
    return {
        "content": message["content"] or "",
        "reasoning": message.get("reasoning") or "",
        "calls": [each["function"] for each in message.get("tool_calls", [])],
        "end": choice["finish_reason"],
        "usage": {name: answer["usage"][name] for name in ("completion_tokens", "completion_tokens_details")},
    }


def streamed(server: RunningServer, body: dict[str, Any]) -> dict[str, Any]:
    """Returns what a client adds up, in the form of ``whole``."""
    status, text = server.ask("POST", CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}})
    if status != 200:
        return {"error": text}
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "end": None}
    for line in text.split("\n"):
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if chunk.get("usage"):
            found["usage"] = {name: chunk["usage"][name] for name in ("completion_tokens", "completion_tokens_details")}
        for choice in chunk.get("choices", []):
            delta = choice["delta"]
            found["content"] += delta.get("content") or ""
            found["reasoning"] += delta.get("reasoning") or ""
            for each in delta.get("tool_calls", []):
                if "id" in each:
                    found["calls"].append({"name": each["function"]["name"], "arguments": ""})
                found["calls"][each["index"]]["arguments"] += each["function"]["arguments"]
            found["end"] = choice["finish_reason"] or found["end"]
    return found


def faults(body: dict[str, Any], answer: dict[str, Any], *, form: str = "hermes") -> list[str]:
    """Returns what is wrong with an answer of a model that writes its calls in this form."""
    if "error" in answer:
        return [f"an error: {answer['error']}"]
    found = [
        f"{mark} in the content"
        for mark in marks_of(FORMATS[form])
        if body["tool_choice"] != "none" and mark in answer["content"]
    ]
    is_whole = answer["end"] != "length" and "stop" not in body
    budget = body.get("thinking_token_budget")
    thought = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    if budget is not None and thought > budget + MARKS:
        found.append(f"{thought} tokens of thinking")
    if not is_whole:
        return found
    must_call = body["tool_choice"] == "required" or isinstance(body["tool_choice"], dict)
    if must_call and not answer["calls"]:
        found.append("no call")
    if answer["calls"] and answer["end"] != "tool_calls":
        found.append(f"calls, and the finish reason {answer['end']}")
    strict = {tool["function"]["name"] for tool in body["tools"] if tool["function"]["strict"]}
    for each in answer["calls"]:
        if must_call or each["name"] in strict:
            found.extend(_unlike(each))
    return found


def _unlike(call: dict[str, Any]) -> list[str]:
    try:
        jsonschema.validate(json.loads(call["arguments"]), TOOLS[call["name"]])
    except (ValueError, KeyError, jsonschema.ValidationError) as error:
        return [f"{call}: {error!r}"]
    return []


def drill(count: int, folder: Path, *, form: str = "hermes", seed: int = 12) -> Result:
    """Asks ``count`` times. ``folder``: a place for the model and its template; ``form``: that of its calls."""
    model = write_tiny(folder / "tiny.gguf", replace(DEFAULT, context=4000)).path
    template = folder / f"{form}.jinja"
    template.write_text(TEMPLATES[form], encoding="utf-8")
    random, result = Random(f"{seed} {form}"), Result()
    budgets = thinking_marks(shipped_template(form)) is not None
    bodies = [drawn(random, budgets=budgets) for _ in range(count)]
    options = ("--chat-template", str(template), "--max-seqs", str(2 * AT_ONCE))
    with (
        RunningServer(*options, environment={"MISTRALRS_DEFAULT_MODEL": str(model)}) as server,
        ThreadPoolExecutor(2 * AT_ONCE) as pool,
    ):
        wholes = pool.map(lambda body: whole(server, body), bodies)
        streams = pool.map(lambda body: streamed(server, body), bodies)
        for body, answer, stream in zip(bodies, wholes, streams, strict=True):
            result.requests += 1
            result.calls += len(answer.get("calls", []))
            result.thoughts += bool(answer.get("reasoning"))
            result.cut += answer.get("end") == "length"
            wrong = faults(body, answer, form=form)
            if answer != stream:
                wrong.append(f"streamed as {stream}, whole as {answer}")
            result.findings += [f"{form}: {json.dumps(body, ensure_ascii=False)}: {each}" for each in wrong]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="requests of all forms together")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    result = Result()
    for form in TEMPLATES:
        with tempfile.TemporaryDirectory() as folder:
            result.add(drill(args.count // len(TEMPLATES), Path(folder), form=form))
    if args.report is not None:
        args.report.write_text(result.report(), encoding="utf-8")
    print(result.report())
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
