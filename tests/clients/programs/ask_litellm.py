"""Sends a server the requests of a test with `litellm`, and prints the results as one JSON object.

It runs in litellm's own environment, without this project; variables have its input.
"""

import asyncio
import json
import os
import warnings
from typing import Any

warnings.simplefilter("ignore")
import litellm  # noqa: E402

BASE_URL, KEY, MODEL = os.environ["BASE_URL"], os.environ["API_KEY"], os.environ["MODEL"]
Seen = dict[str, Any]
MESSAGES = [{"role": "user", "content": os.environ["QUESTION"]}]
TO: Seen = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY, "num_retries": 0, "timeout": 60}


def chat() -> Seen:
    answer = litellm.completion(**TO, messages=MESSAGES, temperature=0)
    choice = answer.choices[0]
    usage = answer.usage
    return {
        "text": choice.message.content,
        "role": choice.message.role,
        "reason": choice.finish_reason,
        "usage": [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
    }


def stream() -> Seen:
    chunks = list(
        litellm.completion(**TO, messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True})
    )
    built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    usages = [chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)]
    return {
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "built": built.choices[0].message.content,
        "reason": built.choices[0].finish_reason,
        "usages": usages,
    }


def logprobs() -> Seen:
    answer = litellm.completion(**TO, messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    return {"text": "".join(each.token for each in content), "tops": [len(each.top_logprobs) for each in content]}


def choices() -> Seen:
    two = litellm.completion(**TO, messages=MESSAGES, temperature=1, seed=7, n=2, max_tokens=12)
    alone = litellm.completion(**TO, messages=MESSAGES, temperature=1, seed=8, max_tokens=12)
    return {
        "indices": [choice.index for choice in two.choices],
        "second": two.choices[1].message.content,
        "alone": alone.choices[0].message.content,
    }


def limits() -> Seen:
    short = litellm.completion(**TO, messages=MESSAGES, temperature=0, max_tokens=3)
    stopped = litellm.completion(**TO, messages=MESSAGES, temperature=0, stop=[" Paris"])
    return {"short": short.choices[0].finish_reason, "stopped": stopped.choices[0].message.content}


def texts() -> Seen:
    answer = litellm.text_completion(
        **{**TO, "model": f"text-completion-openai/{MODEL}"},
        prompt="The capital of France is",
        temperature=0,
        max_tokens=5,
    )
    vectors = litellm.embedding(
        model=f"openai/{MODEL}", api_base=BASE_URL, api_key=KEY, input=["a cat"], encoding_format="float"
    )
    return {"text": answer.choices[0].text, "values": len(vectors.data[0]["embedding"])}


def errors() -> Seen:
    found = {}
    asked: dict[str, Seen] = {
        "long": {"messages": [{"role": "user", "content": "word " * 9000}]},
        "key": {"messages": MESSAGES, "api_key": "sk-wrong"},
        "value": {"messages": MESSAGES, "temperature": -1},
    }
    for name, change in asked.items():
        try:
            litellm.completion(**{**TO, **change})
        except Exception as error:  # the test checks the error, of whatever type it is
            found[name] = [type(error).__name__, getattr(error, "status_code", None), str(error)]
    return found


async def asynchronous() -> Seen:
    answers = await asyncio.gather(*(litellm.acompletion(**TO, messages=MESSAGES, temperature=0) for _ in range(3)))
    pieces = await litellm.acompletion(**TO, messages=MESSAGES, temperature=0, stream=True)
    text = "".join([piece.choices[0].delta.content or "" async for piece in pieces])
    asking = asyncio.create_task(
        litellm.acompletion(**TO, messages=MESSAGES, max_tokens=4000, extra_body={"ignore_eos": True})
    )
    await asyncio.sleep(1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return {
        "texts": [each.choices[0].message.content for each in answers],
        "streamed": text,
        "cancelled": asking.cancelled(),
    }


litellm.suppress_debug_info = True
seen = {each.__name__: each() for each in (chat, stream, logprobs, choices, limits, texts, errors)}
seen["asynchronous"] = asyncio.run(asynchronous())
print(json.dumps(seen))
