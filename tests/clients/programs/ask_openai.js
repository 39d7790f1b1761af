// Asks a server by the npm package `openai` for all that a test looks at, and prints it as one JSON object.

const OpenAI = require("openai");

const { BASE_URL, API_KEY, MODEL, QUESTION } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0, timeout: 60000 });
const messages = [{ role: "user", content: QUESTION }];
const asked = { model: MODEL, messages, temperature: 0 };

async function chat() {
  const answer = await client.chat.completions.create(asked);
  const choice = answer.choices[0];
  return { text: choice.message.content, role: choice.message.role, reason: choice.finish_reason, usage: answer.usage };
}

async function stream() {
  const counted = { ...asked, stream: true, stream_options: { include_usage: true } };
  const chunks = [];
  for await (const chunk of await client.chat.completions.create(counted)) chunks.push(chunk);
  const deltas = chunks.flatMap((chunk) => chunk.choices).map((choice) => choice.delta);
  return {
    text: deltas.map((delta) => delta.content ?? "").join(""),
    roles: deltas.filter((delta) => delta.role).length,
    usages: chunks.filter((chunk) => chunk.usage).map((chunk) => chunk.usage.completion_tokens),
    ids: new Set(chunks.map((chunk) => chunk.id)).size,
  };
}

async function helper() {
  const runner = client.chat.completions.stream({ ...asked, n: 2 });
  const final = await runner.finalChatCompletion();
  return final.choices.map((choice) => [choice.message.role, choice.message.content, choice.finish_reason]);
}

async function logprobs() {
  const answer = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
  const content = answer.choices[0].logprobs.content;
  return { text: content.map((each) => each.token).join(""), tops: content.map((each) => each.top_logprobs.length) };
}

async function choices() {
  const drawn = { model: MODEL, messages, temperature: 1, max_tokens: 12 };
  const two = await client.chat.completions.create({ ...drawn, seed: 7, n: 2 });
  const alone = await client.chat.completions.create({ ...drawn, seed: 8 });
  return {
    indices: two.choices.map((choice) => choice.index),
    second: two.choices[1].message.content,
    alone: alone.choices[0].message.content,
  };
}

async function limits() {
  const short = await client.chat.completions.create({ ...asked, max_completion_tokens: 3 });
  const stopped = await client.chat.completions.create({ ...asked, stop: " Paris" });
  return { short: short.choices[0].finish_reason, stopped: stopped.choices[0].message.content };
}

async function texts() {
  const prompt = "The capital of France is";
  const answer = await client.completions.create({ model: MODEL, prompt, temperature: 0, max_tokens: 5 });
  const vectors = await client.embeddings.create({ model: MODEL, input: "a cat" });
  const models = await client.models.list();
  return { text: answer.choices[0].text, values: vectors.data[0].embedding.length, models: models.data.length };
}

async function error(change, other = client) {
  try {
    await other.chat.completions.create({ ...asked, ...change });
  } catch (error) {
    return [error.constructor.name, error.status, error.code, error.param, error.message];
  }
  return null;
}

async function errors() {
  const stranger = new OpenAI({ baseURL: BASE_URL, apiKey: "sk-wrong", maxRetries: 0 });
  return {
    long: await error({ messages: [{ role: "user", content: "word ".repeat(9000) }] }),
    key: await error({}, stranger),
    value: await error({ temperature: -1 }),
  };
}

async function cancel() {
  const stream = await client.chat.completions.create({ ...asked, stream: true, max_tokens: 4000, ignore_eos: true });
  let count = 0;
  for await (const chunk of stream) {
    if (++count === 4) break; // which ends the request
  }
  return count;
}

async function main() {
  const seen = {};
  for (const each of [chat, stream, helper, logprobs, choices, limits, texts, errors, cancel]) seen[each.name] = await each();
  console.log(JSON.stringify(seen));
}

main();
