// Chats in the browser's own database. A message is a record of its own, so that two tabs in one chat only ever add
// branches to each other's.

const VERSION = 1;

/** Returns the database, or one in memory where the browser refuses it; `isKept` says which. */
export async function openDatabase() {
  try {
    return new ChatDatabase(await connect());
  } catch (error) {
    console.warn("chats are not kept:", error);
    return new MemoryDatabase();
  }
}

class ChatDatabase {
  isKept = true;
  #connection;

  constructor(connection) {
    this.#connection = connection;
    connection.onversionchange = () => connection.close(); // a newer page in another tab
  }

  /** Returns all chats without their messages, the newest first. */
  async list() {
    const records = await this.#do("chats", "readonly", (chats) => chats.getAll());
    return records.sort((a, b) => b.updated - a.updated);
  }

  /** Returns a chat with its messages, or null. */
  async load(id) {
    const record = await this.#do("chats", "readonly", (chats) => chats.get(id));
    if (!record) return null;
    const all = await this.#do("messages", "readonly", (messages) => messages.index("chat").getAll(id));
    return withMessages(record, all);
  }

  /** Saves a chat and those of its messages that are given, all of it or nothing. */
  async save(chat, messages) {
    const transaction = this.#connection.transaction(["chats", "messages"], "readwrite");
    transaction.objectStore("chats").put(recordOf(chat));
    for (const message of messages) transaction.objectStore("messages").put(message);
    await ended(transaction);
  }

  /** Deletes a chat and all its messages. */
  async remove(id) {
    const transaction = this.#connection.transaction(["chats", "messages"], "readwrite");
    transaction.objectStore("chats").delete(id);
    const messages = transaction.objectStore("messages");
    messages.index("chat").getAllKeys(id).onsuccess = (event) => {
      for (const key of event.target.result) messages.delete(key);
    };
    await ended(transaction);
  }

  async #do(store, mode, action) {
    return answerOf(action(this.#connection.transaction(store, mode).objectStore(store)));
  }
}

class MemoryDatabase {
  isKept = false;
  #chats = new Map();

  async list() {
    return [...this.#chats.values()].map(recordOf).sort((a, b) => b.updated - a.updated);
  }

  async load(id) {
    return this.#chats.get(id) ?? null;
  }

  async save(chat) {
    this.#chats.set(chat.id, chat);
  }

  async remove(id) {
    this.#chats.delete(id);
  }
}

function connect() {
  const opening = indexedDB.open("mistralrs", VERSION);
  opening.onupgradeneeded = () => {
    const database = opening.result;
    database.createObjectStore("chats", { keyPath: "id" });
    database.createObjectStore("messages", { keyPath: "id" }).createIndex("chat", "chat");
  };
  return answerOf(opening);
}

function recordOf({ id, title, tip, updated, settings }) {
  return { id, title, tip, updated, settings };
}

function withMessages(record, all) {
  const messages = new Map(all.map((message) => [message.id, message]));
  for (const message of all) if (message.state === "open") message.state = "stopped"; // its tab is gone
  return { ...record, messages };
}

function answerOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function ended(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}
