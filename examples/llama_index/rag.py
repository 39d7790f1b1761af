"""Answers from a text of one's own: LlamaIndex finds the part that fits the question, and the model reads it.

pip install llama-index-core
make model
PYTHONPATH=integrations python examples/llama_index/rag.py

The same model makes the embeddings, so that nothing else is loaded or asked.
"""

from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index_integration import MistralRS

from mistralrs import EmbeddingRequest, Runner, Which

NOTES = [
    "The boat of the Hansens is called Marigold. It is blue and lies in the northern harbour.",
    "The school library opens at nine in the morning and closes at five in the afternoon.",
    "Anna's bicycle is green. She bought it in Bergen.",
]


class Embeddings(BaseEmbedding):
    runner: Any

    def _get_text_embedding(self, text: str) -> list[float]:
        runner: Runner = self.runner
        return runner.send_embedding_request(EmbeddingRequest(text)).data[0].embedding

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


with MistralRS(
    Which.GGUF(quantized_filename=".models/SmolLM2-135M-Instruct.Q4_1.gguf"), temperature=0, max_new_tokens=48
) as llm:
    notes = [TextNode(text=note) for note in NOTES]
    index = VectorStoreIndex(notes, embed_model=Embeddings(runner=llm.runner))
    answer = index.as_query_engine(llm=llm, similarity_top_k=1).query("When does the library open?")
    print(answer)
