// The page: one chat at a time on the screen, its tree in the browser's database, its answers from the server.

import { AnswerStream } from "./answer_stream.js";
import { openDatabase } from "./chat_database.js";
import { ChatList } from "./chat_list.js";
import { addMessage, newChat, pathTo, showBranch, siblings } from "./chat_tree.js";
import { DEFAULT_SETTINGS, askForKey, askForText, confirmDeed, editSettings } from "./dialogs.js";
import { button, icon } from "./elements.js";
import { hasKey, keepKey, listModels } from "./server_api.js";
import { browserStore } from "./storage.js";
import { ThreadView } from "./thread_view.js";

const SAVE_MS = 1000; // an answer that comes is saved as often
const RETRY_S = 3; // between two looks for a server that is away
const THEMES = ["system", "light", "dark"];
const PHASES = { reading: "Reading the chat…", thinking: "Thinking…", answering: "Answering…" };
const ENDS = {
  complete: "The answer is complete.",
  length: "The answer was cut.",
  stopped: "Stopped.",
  failed: "The answer failed.",
};
const ICONS = {
  "close-side": "close",
  "open-side": "chats",
  "open-settings": "settings",
  send: "send",
  stop: "stop",
};

const $ = (id) => document.getElementById(id);

class Page {
  #database;
  #chat = newChat(lastSettings());
  #known = []; // all chats, without their messages
  #loaded = new Map(); // chats with their messages, so that an answer goes on in a chat that is left
  #models = [];
  #answer = null; // the AnswerStream under way
  #savedAt = 0;
  #thread = new ThreadView($("messages"), $("thread"), {
    retry: (message) => this.#retry(message),
    edit: (message, text) => this.#edit(message, text),
    goOn: (message) => this.#run(this.#chat, message, { continuing: true }),
    show: (message, step) => this.#step(message, step),
    take: (message) => this.#take(message),
    changed: () => this.#draw(),
  });
  #list = new ChatList($("chats"), {
    open: (chat) => this.#open(chat.id),
    rename: (chat) => this.#rename(chat.id),
    remove: (chat) => this.#remove(chat),
  });

  async start() {
    for (const [id, name] of Object.entries(ICONS)) $(id).append(icon(name));
    drawTheme();
    this.#database = await openDatabase();
    if (!this.#database.isKept) {
      $("storage-note").textContent = "This browser keeps nothing: the chats end with the page.";
      $("storage-note").hidden = false;
    }
    this.#known = await this.#database.list();
    await this.#open(location.hash.slice(1));
    this.#wire();
    focusMessage();
    await this.#connect();
  }

  // The server

  /** Learns which models there are; waits for a server that loads or is away, and asks for the key that it needs. */
  async #connect() {
    try {
      this.#models = await listModels();
      this.#say(null);
    } catch (error) {
      if (error.code === "invalid_api_key") {
        await this.#needKey(error);
        return;
      }
      this.#say(error.message);
      setTimeout(() => this.#connect(), (error.retryAfterS ?? RETRY_S) * 1000);
    }
    this.#draw();
  }

  async #needKey(error) {
    const reason = hasKey() ? "The key was refused." : "Whoever started the server has one.";
    const key = await askForKey(reason);
    if (key === null) this.#say(error.message, button("Enter a key", () => this.#needKey(error)));
    else {
      keepKey(key);
      await this.#connect();
    }
  }

  #say(text, action = null) {
    $("banner").hidden = text === null;
    $("banner").replaceChildren(...[text, action].filter(Boolean));
  }

  // Chats

  async #open(id) {
    const chat = id ? await this.#load(id) : null;
    this.#chat = chat ?? newChat(lastSettings());
    this.#loaded.set(this.#chat.id, this.#chat);
    history.replaceState(null, "", chat ? `#${id}` : location.pathname + location.search);
    this.#showSide(false);
    this.#draw();
  }

  async #load(id) {
    const chat = this.#loaded.get(id) ?? (await this.#database.load(id));
    if (!chat) return null;
    chat.settings = { ...DEFAULT_SETTINGS, ...chat.settings }; // those that an older page did not have
    this.#loaded.set(id, chat);
    return chat;
  }

  async #rename(id) {
    const chat = await this.#load(id);
    const title = await askForText("Rename the chat", { label: "Title", value: chat.title, yes: "Rename" });
    if (title === null || !chat) return;
    chat.title = title;
    await this.#save(chat, []);
    this.#draw();
  }

  async #remove({ id, title }) {
    const text = `“${title}” and all its branches will be gone.`;
    if (!(await confirmDeed("Delete the chat?", { text, yes: "Delete" }))) return;
    if (this.#answer?.chat.id === id) this.#answer.stop();
    this.#loaded.delete(id);
    await this.#database.remove(id);
    this.#known = await this.#database.list();
    if (this.#chat.id === id) await this.#open(null);
    this.#draw();
  }

  async #save(chat, messages) {
    if (this.#loaded.get(chat.id) !== chat) return; // it was deleted
    try {
      await this.#database.save(chat, messages);
      this.#known = await this.#database.list();
      this.#drawList();
    } catch (error) {
      this.#say(`The chat could not be saved in this browser: ${error.message}`);
    }
  }

  // Messages

  async #send(text) {
    const message = addMessage(this.#chat, this.#chat.tip, { role: "user", content: text });
    history.replaceState(null, "", `#${this.#chat.id}`);
    await this.#answerTo(message);
  }

  async #answerTo(message) {
    const chat = this.#chat;
    const answer = addMessage(chat, message.id, { role: "assistant", state: "open" });
    this.#save(chat, [message, answer]);
    await this.#run(chat, answer, {});
  }

  async #retry(message) {
    await this.#answerTo(this.#chat.messages.get(message.parent));
  }

  async #edit(message, text) {
    const { parent, role } = message;
    const edited = addMessage(this.#chat, parent, { role, content: text });
    this.#draw();
    if (role === "user") await this.#answerTo(edited);
    else await this.#save(this.#chat, [edited]);
  }

  #step(message, step) {
    const all = siblings(this.#chat, message);
    const wanted = all[all.indexOf(message) + step];
    this.#take(wanted);
    this.#thread.focusStep(wanted, step);
  }

  #take(message) {
    showBranch(this.#chat, message);
    this.#draw();
    this.#save(this.#chat, []);
  }

  async #run(chat, message, how) {
    if (this.#answer) return;
    let phase = "";
    const answer = new AnswerStream(chat, message, () => {
      if (chat === this.#chat) this.#thread.grow(message);
      if (answer.phase !== phase) this.#status(PHASES[(phase = answer.phase)] ?? ENDS[message.state]);
      if (performance.now() - this.#savedAt > SAVE_MS) {
        this.#savedAt = performance.now();
        this.#save(chat, [message]);
      }
    });
    this.#answer = answer;
    this.#draw();
    if (chat === this.#chat) this.#thread.toEnd();
    if (document.activeElement === document.body) focusMessage(); // the button that was pressed is gone
    try {
      await answer.run(how);
    } finally {
      this.#answer = null;
      this.#draw();
      await this.#save(chat, [message]);
    }
    if (answer.error?.code === "invalid_api_key") await this.#needKey(answer.error);
    else if (answer.error && $("banner").hidden) await this.#connect();
  }

  // The screen

  #draw() {
    const chat = this.#chat;
    const path = pathTo(chat);
    const title = chat.title || "New chat";
    document.title = chat.title ? `${chat.title} · mistralrs` : "mistralrs";
    $("title").textContent = title;
    $("title").title = title;
    $("model-name").textContent = this.#modelName();
    $("welcome").hidden = path.length > 0;
    this.#thread.show(chat, { isBusy: this.#answer !== null });
    this.#drawStop();
    this.#drawContext(path);
    this.#drawList();
  }

  #drawStop() {
    const hadFocus = document.activeElement === $("stop");
    $("stop").hidden = this.#answer === null;
    $("send").hidden = this.#answer !== null;
    if (hadFocus && $("stop").hidden) focusMessage();
  }

  #drawList() {
    this.#list.show(this.#known, { current: this.#chat.id, filter: $("filter").value });
  }

  #drawContext(path) {
    const facts = path.findLast(({ facts }) => facts?.tokens)?.facts;
    const most = this.#models[0]?.context_length;
    const used = facts && facts.promptTokens + facts.tokens;
    $("context").textContent = facts && most ? `Context: ${used.toLocaleString()} of ${most.toLocaleString()} tokens` : "";
  }

  #modelName() {
    const { model, withoutAdapters } = this.#chat.settings;
    const base = this.#models[0]?.id ?? "";
    return model ? `${base} · ${model}` : withoutAdapters ? `${base} · without adapters` : base;
  }

  #status(text) {
    $("status").textContent = text;
  }

  #showSide(isOpen) {
    document.body.classList.toggle("side-open", isOpen);
    $("shade").hidden = !isOpen;
    $("open-side").setAttribute("aria-expanded", String(isOpen || !isNarrow()));
  }

  #wire() {
    $("theme").addEventListener("click", changeTheme);
    $("open-settings").addEventListener("click", () => this.#settings());
    $("new-chat").addEventListener("click", async () => {
      await this.#open(null);
      $("message").focus();
    });
    $("filter").addEventListener("input", () => this.#drawList());
    $("open-side").addEventListener("click", () => {
      if (isNarrow()) {
        this.#showSide(true);
        $("close-side").focus();
      } else document.body.classList.toggle("side-closed");
      $("open-side").setAttribute("aria-expanded", String(!document.body.classList.contains("side-closed")));
    });
    for (const id of ["close-side", "shade"]) {
      $(id).addEventListener("click", () => {
        this.#showSide(false);
        $("open-side").focus();
      });
    }
    $("stop").addEventListener("click", () => this.#answer?.stop());
    document.addEventListener("keydown", (event) => this.#key(event));
    window.addEventListener("hashchange", () => {
      const id = location.hash.slice(1);
      if (id !== this.#chat.id) this.#open(id);
    });
    this.#wireComposer();
  }

  #wireComposer() {
    const area = $("message");
    const fit = () => {
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight}px`;
    };
    area.addEventListener("input", fit);
    area.addEventListener("keydown", (event) => {
      // an input method ends its word with Enter too
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      $("composer").requestSubmit();
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!area.value.trim()) return;
      if (this.#answer) {
        this.#status("An answer is coming: Esc stops it.");
        return;
      }
      const text = area.value;
      area.value = "";
      fit();
      this.#send(text);
    });
  }

  #key(event) {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (document.body.classList.contains("side-open")) $("close-side").click();
    else this.#answer?.stop();
  }

  async #settings() {
    const onForgetKey = () => keepKey("");
    const settings = await editSettings(this.#chat.settings, { models: this.#models, onForgetKey });
    if (settings === null) return;
    this.#chat.settings = settings;
    browserStore.set("settings", JSON.stringify(settings));
    if (this.#chat.messages.size) await this.#save(this.#chat, []);
    this.#draw();
  }
}

function lastSettings() {
  const kept = browserStore.get("settings");
  return { ...DEFAULT_SETTINGS, ...(kept === null ? {} : JSON.parse(kept)) };
}

/** Puts the focus on the message, but where that brings up the keyboard of a phone. */
function focusMessage() {
  if (!matchMedia("(pointer: coarse)").matches) $("message").focus();
}

function isNarrow() {
  return matchMedia("(max-width: 760px)").matches;
}

function changeTheme() {
  const theme = THEMES[(THEMES.indexOf(browserStore.get("theme") ?? "system") + 1) % THEMES.length];
  browserStore.set("theme", theme === "system" ? null : theme);
  drawTheme();
}

function drawTheme() {
  const theme = browserStore.get("theme") ?? "system";
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const label = { system: "Theme: the system's", light: "Theme: light", dark: "Theme: dark" }[theme];
  $("theme").replaceChildren(icon(theme));
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
}

new Page().start();
