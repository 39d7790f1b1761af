"""A question that the model answers with a function of this program.

Tools need a chat template that shows them to the model. This small model's own does not, which is why it gets another
one; it was not trained for tools either, so that the request makes it call one.
"""

from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo

from mistralrs import ChatCompletionRequest, Message, Role, Runner, Which, run_tool_call

Zone = Literal["Europe/Paris", "Asia/Tokyo", "America/Lima"]


def current_time(zone: Zone) -> str:
    """Tells the time in a part of the world.

    Args:
        zone: The name of the time zone.
    """
    return f"{datetime.now(ZoneInfo(zone)):%H:%M}"


model = Which.GGUF(quantized_filename=".models/SmolLM2-135M-Instruct.Q4_1.gguf")
with Runner(model, chat_template="hermes") as runner:
    messages = [Message(Role.User, "What time is it in Tokyo?")]
    called = runner.send_chat_completion_request(
        ChatCompletionRequest(
            messages, tools=[current_time], tool_choice="required", parallel_tool_calls=False, temperature=0
        )
    )
    messages.append(called.choices[0].message)
    for call in called.choices[0].message.tool_calls:
        print(call.function.name, call.function.arguments)
        messages.append(run_tool_call(call, [current_time]))

    answer = runner.send_chat_completion_request(ChatCompletionRequest(messages, max_tokens=64, temperature=0))
    print(messages[-1])
    print(answer.choices[0].message.content)
