"""Answers in the formats of the shipped response templates, and the reading of them by transformers' parser."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mistralrs.text.builtin_templates import response_template_file
from mistralrs.text.response.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from mistralrs.text.response.response_parser import ResponseParser
from mistralrs.text.response.response_template import Part, ResponseTemplate

Call = tuple[str, dict[str, Any]]
WORDS = (
    *(
        "Let",
        "me",
        "look",
        "it",
        "up:",
        "naïve",
        "Zürich",
        "日本語",
        "🦙",
        "e\u0301",
        "a < b",
        "x > y",
        "1 < 2;",
        "[0]",
        "{}",
    ),
    *(
        "```py\nprint('hi')\n```",
        '"quoted"',
        "a\n\nb",
        "<",
        "<t",
        "</",
        "<|",
        "[",
        "[T",
        "|>",
        "\t",
        "tab\tbed",
        "&amp;",
    ),
)
TEXTS = (
    *(
        "Paris",
        "",
        "Zürich",
        "日本語 🦙",
        'say "hi"',
        "back\\slash",
        "a\nb",
        "tab\t",
        "</tool",
        "<think",
        "[/INST",
        "{}",
        "\u2028",
    ),
    *("e\u0301", "<|", "100 %", "x: [1, 2}", "'single'", "<b>bold</b>", "null", "7", "🇨🇭"),
)
NAMES = ("get_weather", "f", "search_web", "add2", "send_mail")

TYPES: list[dict[str, Any]] = [
    *({"type": kind} for kind in ("integer", "number", "boolean", "string", "object", "array")),
    {"type": ["null", "integer"]},
    {"anyOf": [{"type": "string"}, {"type": "number"}]},
    {"type": "integer", "nullable": True},
    {},
]


@dataclass(frozen=True, slots=True)
class Format:
    """How a model of one shipped template writes."""

    name: str
    chat_template: str
    """A small one with the family's markers."""
    prompt: str
    spell: Callable[[Random], str]
    """A random answer."""


@dataclass(frozen=True, slots=True)
class Message:
    """An answer in its parts."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, Any], ...]


def random_text(random: Random, words: int = 6) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, words)))


def random_value(random: Random, depth: int = 0) -> Any:
    kind = random.randrange(8 if depth < 3 else 6)
    if kind < 3:
        return random.choice(TEXTS)
    if kind == 6:
        return [random_value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 7:
        return {random.choice(TEXTS) or "k": random_value(random, depth + 1) for _ in range(random.randrange(4))}
    return random.choice([0, -1, 2**53, 1.5, -2e-7, True, False, None])


def random_call(random: Random) -> Call:
    keys = random.sample(("city", "n", "opts", "längs", "q"), random.randrange(4))
    return random.choice(NAMES), {key: random_value(random) for key in keys}


def random_tools(random: Random) -> list[dict[str, Any]]:
    """Tools that declare some types of the arguments, right or wrong."""
    tools = []
    for name in NAMES:
        properties = {key: random.choice(TYPES) for key in ("city", "n", "opts", "längs", "k0", "k1")}
        tools.append({"type": "function", "function": {"name": name, "parameters": {"properties": properties}}})
    return tools


def tools_for(random: Random, template: ResponseTemplate) -> list[dict[str, Any]]:
    """Sometimes some tools, for templates in which transformers takes their types into account."""
    typed = any(region.part is Part.TOOL_CALLS and region.transform is not None for region in template.regions)
    return random_tools(random) if typed and random.random() < 0.5 else []


def spelled_json(random: Random, value: Any) -> str:
    layout = random.choice([{}, {"indent": 2}, {"separators": (",", ":")}])
    return json.dumps(value, ensure_ascii=random.random() < 0.4, **layout)  # type: ignore[arg-type]


def object_of(random: Random, call: Call, *, arguments: str = "arguments") -> str:
    members: list[tuple[str, Any]] = [("name", call[0]), (arguments, call[1])]
    if random.random() < 0.3:
        members.reverse()
    if random.random() < 0.3:
        members.insert(random.randrange(3), ("id", "abcdefghi"))
    return spelled_json(random, dict(members))


def in_tags(random: Random, opening: str, closing: str) -> str:
    space = random.choice(["", "\n", " "])
    return f"{opening}{space}{random_text(random, 12)}{space}{closing}"


def mixed(random: Random, think: Callable[[Random], str] | None, call: Callable[[Random], str]) -> str:
    """Thoughts, text and calls in an order that models use, sometimes with another thought between."""
    parts: list[str] = []
    for _ in range(random.randint(1, 2)):
        if think is not None and random.random() < 0.6:
            parts.append(think(random))
        if random.random() < 0.7:
            parts.append(random_text(random))
        if random.random() < 0.7:
            parts += [call(random) for _ in range(random.randint(1, 3))]
    if random.random() < 0.4:
        parts.append(random_text(random))
    return random.choice(["", "\n", "\n\n"]).join(parts)


def think(random: Random) -> str:
    return in_tags(random, "<think>", "</think>")


def hermes(random: Random) -> str:
    return mixed(random, think, lambda random: f"<tool_call>\n{object_of(random, random_call(random))}\n</tool_call>")


def only_think(random: Random) -> str:
    return in_tags(random, "<think>", "</think>") + random.choice(["", "\n\n"]) + random_text(random, 12)


def qwen3_coder(random: Random) -> str:
    def call(random: Random) -> str:
        name, arguments = random_call(random)
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
        parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
        return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"

    return mixed(random, think, call)


def mistral_v3(random: Random) -> str:
    calls = [object_of(random, random_call(random)) for _ in range(random.randrange(4))]
    text = random_text(random) if random.random() < 0.5 or not calls else ""
    return f"{text}[TOOL_CALLS] [{', '.join(calls)}]" if calls else text


def mistral_v11(random: Random) -> str:
    def call(random: Random) -> str:
        name, arguments = random_call(random)
        number = random.choice(["", "[CALL_ID]abc123DEF"])
        return f"[TOOL_CALLS]{name}{number}[ARGS]{spelled_json(random, arguments)}"

    head = in_tags(random, "[THINK]", "[/THINK]") if random.random() < 0.6 else ""
    head += random_text(random).replace("[", "(") if random.random() < 0.6 else ""
    return head + "".join(call(random) for _ in range(random.randrange(4)))


def harmony(random: Random) -> str:
    parts = []
    for _ in range(random.randrange(3)):
        channel = random.choice(["analysis", "commentary"])
        parts.append(f"<|channel|>{channel}<|message|>{random_text(random, 12)}<|end|>")
    if random.random() < 0.5:
        parts.append(f"<|channel|>final<|message|>{random_text(random, 12)}<|return|>")
    else:
        name, arguments = random_call(random)
        header = random.choice(
            [
                f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
                f" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>",
                f"<|channel|>commentary to=functions.{name}<|message|>",
            ]
        )
        parts.append(f"{header}{spelled_json(random, arguments)}<|call|>")
    return "<|start|>assistant".join(parts)


def llama_3(random: Random) -> str:
    if random.random() < 0.3:
        return random_text(random, 12)
    calls = [random_call(random) for _ in range(random.randint(1, 3))]
    objects = [spelled_json(random, {"name": name, "parameters": arguments}) for name, arguments in calls]
    tag = random.choice(["", "<|python_tag|>"])
    end = random.choice(["", "<|eom_id|>"])
    return f"{tag}{'; '.join(objects)}{end}"


def phi_4(random: Random) -> str:
    calls = [object_of(random, random_call(random)) for _ in range(random.randint(1, 3))]
    text = random_text(random) if random.random() < 0.5 else ""
    if random.random() < 0.3:
        return f"{text}functools[{', '.join(calls)}]"
    if random.random() < 0.5:
        return f"{text}<|tool_call|>[{', '.join(calls)}]<|/tool_call|>"
    return text + "".join(f"<|tool_call|>{each}<|/tool_call|>" for each in calls)


def granite_3(random: Random) -> str:
    if random.random() < 0.4:
        return f"{think(random)}<response>{random_text(random)}</response>"
    calls = [object_of(random, random_call(random)) for _ in range(random.randint(1, 3))]
    return f"{random.choice(['', random_text(random)])}<|tool_call|>[{', '.join(calls)}]"


def functiongemma(random: Random) -> str:
    def spelled(value: Any) -> str:
        if isinstance(value, str):
            return f"<escape>{value}<escape>"
        if isinstance(value, dict):
            return "{" + ",".join(f"k{place}:{spelled(each)}" for place, each in enumerate(value.values())) + "}"
        if isinstance(value, list):
            return f"[{','.join(map(spelled, value))}]"
        return json.dumps(value)

    def call(random: Random) -> str:
        name, arguments = random_call(random)
        return f"<start_function_call>call:{name}{spelled(arguments)}<end_function_call>"

    text = random_text(random) if random.random() < 0.5 else ""
    return text + "".join(call(random) for _ in range(random.randrange(4))) + "<start_function_response>"


def gemma_3(random: Random) -> str:
    calls = [object_of(random, random_call(random)) for _ in range(random.randint(1, 2))]
    text = random_text(random)
    return text if random.random() < 0.3 else f"{text}\n```tool_code\n[{', '.join(calls)}]\n```"


def olmo_3(random: Random) -> str:
    def call(random: Random) -> str:
        name, arguments = random_call(random)
        return f"{name}({', '.join(f'{key}={json.dumps(value)}' for key, value in arguments.items())})"

    head = (think(random) if random.random() < 0.5 else "") + (random_text(random) if random.random() < 0.5 else "")
    calls = [call(random) for _ in range(random.randrange(4))]
    return head + ("<function_calls>\n" + "\n".join(calls) + "\n</function_calls>" if calls else "")


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
ASSISTANT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
FORMATS = {
    each.name: each
    for each in (
        Format("harmony", "<|start|>{{ role }}<|channel|>final<|message|>", "<|start|>assistant", harmony),
        Format("mistral-v11", "[INST]{{ m }}[/INST][TOOL_CALLS]{{ name }}[ARGS]", "[INST]Hi[/INST]", mistral_v11),
        Format("mistral-v3", "[INST] {{ m }}[/INST][TOOL_CALLS] [", "<s>[INST] Hi[/INST]", mistral_v3),
        Format(
            "functiongemma",
            "<start_of_turn>{{ role }}<start_function_call>call:<end_of_turn>",
            "<start_of_turn>model\n",
            functiongemma,
        ),
        Format("qwen3-coder", CHATML + "<tool_call><function={{ f }}><parameter=", ASSISTANT, qwen3_coder),
        Format("olmo-3", CHATML + "<function_calls>{{ f }}</function_calls><think>", ASSISTANT, olmo_3),
        Format("phi-4", "<|tool|>{{ tools }}<|/tool|><|user|>Hi<|end|><|assistant|>", "<|assistant|>", phi_4),
        Format("hermes", CHATML + "<tool_call>{{ call }}</tool_call><think></think>", ASSISTANT, hermes),
        Format(
            "granite-3",
            "<|start_of_role|>{{ role }}<|end_of_role|> respond with <|tool_call|> followed by a JSON list",
            "<|start_of_role|>assistant<|end_of_role|>",
            granite_3,
        ),
        Format(
            "llama-3",
            '<|start_header_id|>{{ role }}<|end_header_id|> {"name": function name, "parameters": ...}',
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            llama_3,
        ),
        Format(
            "think", "<｜User｜>{{ m }}<｜Assistant｜>{{ content.split('</think>') }}", "<｜Assistant｜>", only_think
        ),
        Format("gemma-3", "<start_of_turn>{{ role }}<end_of_turn>", "<start_of_turn>model\n", gemma_3),
    )
}


def declaration(name: str) -> dict[str, Any]:
    declared: dict[str, Any] = json.loads(response_template_file(name).read_text(encoding="utf-8"))
    return declared


def message_of(pieces: Iterable[Piece]) -> Message:
    """The whole answer; checks that each call starts before its arguments, in order."""
    content = reasoning = ""
    names: list[str] = []
    arguments: list[str] = []
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case ToolCallStart(index, name):
                assert index == len(names)
                names.append(name)
                arguments.append("")
            case ToolCallArguments(index, text):
                assert index == len(names) - 1
                arguments[index] += text
    return Message(content, reasoning, tuple(zip(names, arguments, strict=True)))


def with_values(message: Message) -> Message:
    """The message with the arguments as values."""
    calls = tuple((name, json.loads(text)) for name, text in message.calls)
    return Message(message.content, message.reasoning, calls)


def parsed(
    template: ResponseTemplate,
    parts: Sequence[str],
    *,
    prompt: str = "",
    tools: Sequence[dict[str, Any]] = (),
) -> Message:
    """The answer that comes in these parts."""
    parser = ResponseParser(template, prompt_end=prompt, tools=tools)
    pieces = [piece for part in parts for piece in parser.push(part)]
    return message_of([*pieces, *parser.finish()])


def reference(
    declared: dict[str, Any], text: str, *, prompt: str = "", tools: Sequence[dict[str, Any]] = ()
) -> Message:
    """The answer as transformers' parser reads it. Raises ValueError where it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils.chat_parsing import parse_response

    message = parse_response(text, declared, prefix=prompt, tools=list(tools))
    reasoning = message.get("thinking") or message.get("reasoning_content") or message.get("reasoning") or ""
    return Message(message.get("content") or "", reasoning, tuple(_calls(message.get("tool_calls") or [])))


def _calls(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, list):
        for each in value:
            yield from _calls(each)
    else:
        function = value.get("function", value)
        yield function["name"], function.get("arguments", {})


def random_cuts(random: Random, text: str) -> list[str]:
    """The text in parts, from single characters to long ones."""
    mean = random.choice([1, 2, 4, 16, 64])
    parts, place = [], 0
    while place < len(text):
        size = random.randint(1, 2 * mean - 1)
        parts.append(text[place : place + size])
        place += size
    return parts
