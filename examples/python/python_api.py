"""A chat, a text completion and a stream, from Python.

make model
python examples/python/python_api.py

Which.MistralGGUF(), Which.Auto("OWNER/NAME") and others load another model; docs/python.md has them all.
"""

from mistralrs import ChatCompletionRequest, CompletionRequest, Message, Role, Runner, Which

with Runner(Which.GGUF(quantized_filename=".models/SmolLM2-135M-Instruct.Q4_1.gguf")) as runner:
    chat = runner.send_chat_completion_request(
        ChatCompletionRequest(
            messages=[Message(Role.System, "Be brief."), Message(Role.User, "What is the capital of France?")],
            max_tokens=64,
            presence_penalty=1.0,
            top_p=0.1,
            temperature=0.1,
        )
    )
    print(chat.choices[0].message.content)
    print(chat.usage)

    completion = runner.send_completion_request(CompletionRequest("The capital of Spain is", max_tokens=16))
    print(completion.choices[0].text)

    stream = runner.send_chat_completion_request(
        ChatCompletionRequest("Name three fruits.", max_tokens=64, temperature=0, stream=True)
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
