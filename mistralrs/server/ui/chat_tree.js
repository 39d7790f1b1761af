// A chat as a tree of messages: each names its parent, and the tip is the end of the path that is shown. Nothing is
// ever taken out of the tree.
//
// chat: { id, title, tip, updated, settings, messages: Map of id to message }
// message: { id, chat, parent, order, role, content, reasoning, state, error, facts }
//   state: "open" while it comes, "complete", "length" (the limit of tokens cut it), "stopped" by the user, "failed"

const TITLE_LENGTH = 60;

/** Returns a new chat, without any message. */
export function newChat(settings) {
  return { id: newId(), title: "", tip: null, updated: Date.now(), settings, messages: new Map() };
}

/** Adds a message under the message `parent` (null: at the root), makes it the tip, and returns it. */
export function addMessage(chat, parent, fields) {
  const message = {
    id: newId(),
    chat: chat.id,
    parent,
    order: nextOrder(chat),
    content: "",
    reasoning: "",
    state: "complete",
    error: null,
    facts: null,
    ...fields,
  };
  chat.messages.set(message.id, message);
  chat.tip = message.id;
  chat.updated = Date.now();
  if (!chat.title && message.role === "user") chat.title = titleOf(message.content);
  return message;
}

/** Returns the messages from the root to `end`, which is the tip if it is left out. */
export function pathTo(chat, end = chat.tip) {
  const path = [];
  for (let each = chat.messages.get(end); each; each = chat.messages.get(each.parent)) path.unshift(each);
  return path;
}

/** Returns the messages with the same parent, in the order in which they came. */
export function siblings(chat, message) {
  return childrenOf(chat, message.parent);
}

/** Shows the branch that `message` is on: the tip becomes the newest message below it. */
export function showBranch(chat, message) {
  let end = message;
  for (let below = childrenOf(chat, end.id); below.length; below = childrenOf(chat, end.id)) end = below.at(-1);
  chat.tip = end.id;
}

/** Returns the messages down to `end`, as a request has them. */
export function messagesFor(chat, end) {
  const asked = pathTo(chat, end).map(({ role, content, reasoning }) =>
    reasoning ? { role, content, reasoning_content: reasoning } : { role, content },
  );
  const { system } = chat.settings;
  return system ? [{ role: "system", content: system }, ...asked] : asked;
}

function childrenOf(chat, parent) {
  return [...chat.messages.values()].filter((each) => each.parent === parent).sort((a, b) => a.order - b.order);
}

/** Returns a number above those of all messages: the time, so that those of two tabs are in their order too. */
function nextOrder(chat) {
  return [...chat.messages.values()].reduce((most, { order }) => Math.max(most, order + 1), Date.now());
}

function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  const characters = [...line];
  return characters.length > TITLE_LENGTH ? `${characters.slice(0, TITLE_LENGTH - 1).join("")}…` : line;
}

function newId() {
  // randomUUID is only there on HTTPS and on this machine
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
