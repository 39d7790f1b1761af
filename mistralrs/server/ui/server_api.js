// Requests to the server, with the key that this tab keeps. Errors have the server's own words.

import { tabStore } from "./storage.js";

const ROOT = new URL("../", import.meta.url);
const UNREACHABLE = "The server cannot be reached. Start it again, or check the connection.";
const CUT = "The connection was lost before the answer was complete. What arrived is kept.";

/** An error of the server, or of the way to it. */
export class ServerError extends Error {
  /** `code`: the server's code, or `unreachable`, `connection_lost`. `retryAfterS`: seconds to wait, or null. */
  constructor(message, { code, retryAfterS = null }) {
    super(message);
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** Returns whether this tab has a key. */
export function hasKey() {
  return Boolean(tabStore.get("key"));
}

/** Keeps a key until the tab is closed; an empty one forgets it. */
export function keepKey(key) {
  tabStore.set("key", key.trim() || null);
}

/** Returns the models and adapters that the server lists. */
export async function listModels() {
  const response = await request("v1/models", {});
  return (await response.json()).data;
}

/**
 * Asks for an answer, and yields `{ truncated }` once it begins and then each chunk of it. Throws ServerError, and
 * AbortError when `signal` aborts.
 */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  yield { truncated: Number(response.headers.get("x-mistralrs-truncated") ?? 0) };
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, { code: chunk.error.code });
    yield chunk;
  }
  throw new ServerError(CUT, { code: "connection_lost" });
}

async function request(path, options) {
  const headers = {};
  const key = tabStore.get("key");
  // a header is bytes: those of the key in UTF-8
  if (key) headers.authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
  if (options.body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(UNREACHABLE, { code: "unreachable" });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const waits = Number(response.headers.get("retry-after") ?? NaN);
  const retryAfterS = Number.isFinite(waits) ? waits : null;
  try {
    const { message, code } = (await response.json()).error;
    return new ServerError(message, { code, retryAfterS });
  } catch {
    // something between this page and the server answered
    return new ServerError(`The server answered with the status ${response.status}.`, { code: "other", retryAfterS });
  }
}

async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await read(reader, signal);
      if (done) return;
      text += value;
      const whole = text.split("\n\n");
      text = whole.pop();
      for (const event of whole) if (event.startsWith("data: ")) yield event.slice("data: ".length);
    }
  } finally {
    reader.cancel().catch(() => {}); // the stream may have ended in an error, which was thrown already
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal.aborted) throw new DOMException("stopped", "AbortError");
    throw new ServerError(CUT, { code: "connection_lost" });
  }
}
