"""Many answers at once on an event loop: all of them run in one batch, and each is shown when it is complete."""

import asyncio

from mistralrs import AsyncRunner, ChatCompletionRequest, Which

COUNTRIES = ["France", "Spain", "Italy", "Poland", "Norway", "Kenya", "Japan", "Peru"]


async def ask(runner: AsyncRunner, country: str) -> str:
    request = ChatCompletionRequest(f"What is the capital of {country}?", max_tokens=24, temperature=0)
    answer = await runner.send_chat_completion_request(request)
    return answer.choices[0].message.content


async def main() -> None:
    model = Which.GGUF(quantized_filename=".models/SmolLM2-135M-Instruct.Q4_1.gguf")
    async with AsyncRunner(model, max_seqs=len(COUNTRIES)) as runner:
        for answer in asyncio.as_completed([ask(runner, country) for country in COUNTRIES]):
            print(await answer)


asyncio.run(main())
