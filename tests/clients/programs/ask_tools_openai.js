// Asks a server by the npm package `openai`, its tool runner and its helper for zod; prints all as one JSON object.

const OpenAI = require("openai");
const { zodFunction, zodResponseFormat } = require("openai/helpers/zod");
const { z } = require("zod");

const { BASE_URL, QUESTION } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: "any", maxRetries: 0, timeout: 60000 });
const Place = z.object({ city: z.string().max(20), continent: z.enum(["Africa", "Europe"]) });
const asked = {
  model: "default",
  messages: [{ role: "user", content: QUESTION }],
  temperature: 0,
  max_tokens: 300,
  parallel_tool_calls: false,
};

async function parsed() {
  const { parallel_tool_calls, ...rest } = asked;
  const body = { ...rest, response_format: zodResponseFormat(Place, "place") };
  const whole = await client.chat.completions.parse(body);
  const stream = client.chat.completions.stream(body);
  const final = await stream.finalChatCompletion();
  return [whole.choices[0].message.parsed, final.choices[0].message.parsed];
}

async function ran(stream) {
  const calls = [];
  const tool = zodFunction({
    name: "weather",
    description: "Tells the weather of a city.",
    parameters: z.object({ city: z.enum(["Paris", "Oslo"]) }),
    function: (told) => {
      calls.push(told);
      return "snow";
    },
  });
  const named = { type: "function", function: { name: "weather" } };
  const runner = client.chat.completions.runTools({ ...asked, tools: [tool], tool_choice: named, stream });
  await runner.done();
  const roles = runner.messages.map((message) => message.role);
  return { calls, roles, result: await runner.finalFunctionToolCallResult() };
}

async function main() {
  console.log(JSON.stringify({ parsed: await parsed(), whole: await ran(false), streamed: await ran(true) }));
}

main();
