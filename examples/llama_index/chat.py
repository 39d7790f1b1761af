"""A chat by LlamaIndex with a model in this process, whole and streamed.

pip install llama-index-core
make model
PYTHONPATH=integrations python examples/llama_index/chat.py
"""

from llama_index.core.llms import ChatMessage
from llama_index_integration import MistralRS

from mistralrs import Which

with MistralRS(
    Which.GGUF(quantized_filename=".models/SmolLM2-135M-Instruct.Q4_1.gguf"), temperature=0, max_new_tokens=64
) as llm:
    messages = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="What is the capital of France?"),
    ]
    print(llm.chat(messages).message.content)

    for piece in llm.stream_chat([*messages, ChatMessage(role="user", content="Name three fruits.")]):
        print(piece.delta, end="", flush=True)
    print()
