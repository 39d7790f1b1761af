// One answer while it comes: the request, and the message that grows.

import { messagesFor } from "./chat_tree.js";
import { ServerError, streamChat } from "./server_api.js";

/** Asks for the answer that `message` of `chat` is to hold. `onChange` is called whenever the message has changed. */
export class AnswerStream {
  /** "reading" the prompt, "thinking", "answering" or "ended" */
  phase = "reading";
  /** The ServerError that ended the answer, or null. */
  error = null;
  #abort = new AbortController();
  #began = performance.now();

  constructor(chat, message, onChange) {
    this.chat = chat;
    this.message = message;
    this.onChange = onChange;
  }

  /** Ends the request; what has arrived stays. */
  stop() {
    this.#abort.abort();
  }

  /** Runs to the end, which no error leaves open. With `continuing` the message goes on where it was cut. */
  async run({ continuing = false } = {}) {
    const { message } = this;
    Object.assign(message, { state: "open", error: null, facts: { thoughtS: message.facts?.thoughtS } });
    this.onChange();
    try {
      for await (const chunk of streamChat(requestFor(this.chat, message, continuing), this.#abort.signal)) {
        this.#take(chunk);
        this.onChange();
      }
      if (message.state === "open") message.state = "complete";
    } catch (error) {
      if (error.name === "AbortError") message.state = "stopped";
      else if (error instanceof ServerError) this.#fail(error);
      else throw error;
    } finally {
      if (message.state === "open") message.state = "failed";
      this.#settleThinking();
      this.phase = "ended";
      this.onChange();
    }
  }

  #take(chunk) {
    const { message } = this;
    if (chunk.truncated !== undefined) {
      message.facts.truncated = chunk.truncated;
      return;
    }
    const [choice] = chunk.choices;
    const { content, reasoning } = choice?.delta ?? {};
    if (content || reasoning) message.facts.firstS ??= this.#passedS;
    if (reasoning) {
      this.phase = "thinking";
      message.reasoning += reasoning;
    }
    if (content) {
      this.#settleThinking();
      this.phase = "answering";
      message.content += content;
    }
    if (choice?.finish_reason === "length") message.state = "length";
    message.facts.model = chunk.model;
    if (chunk.timings) message.facts.rate = chunk.timings.avg_compl_tok_per_sec;
    if (chunk.usage) {
      message.facts.promptTokens = chunk.usage.prompt_tokens;
      message.facts.tokens = chunk.usage.completion_tokens;
    }
  }

  /** Notes how long the model thought, once. */
  #settleThinking() {
    const { facts, reasoning } = this.message;
    if (reasoning) facts.thoughtS ??= this.#passedS;
  }

  get #passedS() {
    return (performance.now() - this.#began) / 1000;
  }

  #fail(error) {
    this.error = error;
    Object.assign(this.message, { state: "failed", error: { message: error.message, code: error.code } });
  }
}

function requestFor(chat, message, continuing) {
  const { model, withoutAdapters, temperature, topP, maxTokens, thinking } = chat.settings;
  const body = {
    model: model || "default",
    messages: messagesFor(chat, continuing ? message.id : message.parent),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (withoutAdapters) body.adapter = "none";
  if (temperature !== null) body.temperature = temperature;
  if (topP !== null) body.top_p = topP;
  if (maxTokens !== null) body.max_tokens = maxTokens;
  if (thinking !== null) body.chat_template_kwargs = { enable_thinking: thinking };
  if (continuing) Object.assign(body, { add_generation_prompt: false, continue_final_message: true });
  return body;
}
