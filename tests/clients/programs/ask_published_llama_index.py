"""Asks a model in this process by the published package `llama-index-llms-mistral-rs`; prints all as one JSON object.

It runs in the package's own environment, with this project; variables have its input.
"""

import asyncio
import json
import os
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.mistral_rs import MistralRS, base

import mistralrs

QUESTION = os.environ["QUESTION"]
MESSAGES = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=QUESTION)]
WHICH = mistralrs.Which.GGUF(quantized_filename=os.environ["MODEL_FILE"])
SETTINGS: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 24, "top_logprobs": 2, "max_seqs": 4}


def fault_of(function: Any) -> str:
    try:
        function()
    except Exception as error:  # the test checks the error, of whatever type it is
        return type(error).__name__
    return ""


async def asynchronous(llm: Any) -> list[str]:
    answer = await llm.acomplete(QUESTION)
    pieces = [piece.delta async for piece in await llm.astream_complete(QUESTION)]
    chat = [piece.delta async for piece in await llm.astream_chat(MESSAGES)]
    return [answer.text, "".join(pieces), "".join(chat)]


seen: dict[str, Any] = {"unmended": fault_of(lambda: MistralRS(WHICH, **SETTINGS))}
base.Runner = mistralrs.Runner  # the package imports the name for type checkers alone
llm = MistralRS(WHICH, **SETTINGS)
answer = llm.complete(QUESTION)
seen["complete"] = {"text": answer.text, "tokens": [each.token for each in answer.logprobs[0]]}
seen["stream_complete"] = [[piece.delta, piece.text] for piece in llm.stream_complete(QUESTION)]
seen["stream_chat"] = [piece.delta for piece in llm.stream_chat(MESSAGES)]
seen["chat"] = fault_of(lambda: llm.chat(MESSAGES))
seen["asynchronous"] = asyncio.run(asynchronous(llm))
llm._runner.close()
print(json.dumps(seen))
