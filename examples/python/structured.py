"""Facts as a value of a pydantic class, and an answer that is one of some choices."""

from typing import Literal

from pydantic import BaseModel, Field

from mistralrs import ChatCompletionRequest, Runner, Which

TEXT = "Ada Lovelace, born in London in 1815, wrote about Charles Babbage's Analytical Engine."


class Person(BaseModel):
    name: str = Field(max_length=40)
    born: int = Field(ge=1000, le=2100)
    place: str = Field(max_length=40)


with Runner(Which.GGUF(quantized_filename=".models/SmolLM2-135M-Instruct.Q4_1.gguf")) as runner:
    answer = runner.send_chat_completion_request(
        ChatCompletionRequest(f"Who is meant here, as JSON? {TEXT}", response_model=Person, temperature=0)
    )
    person = answer.parsed
    print(f"{person.name} was born in {person.place} in {person.born}.")

    answer = runner.send_chat_completion_request(
        ChatCompletionRequest(f"Is this text about science? {TEXT}", response_model=Literal["yes", "no"], temperature=0)
    )
    print(answer.parsed)
