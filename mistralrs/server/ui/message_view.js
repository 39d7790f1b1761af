// One message on the page, with its buttons. It shows the state of the message and calls `actions` for each wish.

import { button, copyButton, element, iconButton } from "./elements.js";
import { MarkdownView } from "./markdown.js";

const SLOWEST_S = 4; // between two drawings of an answer that grows
const SHARE = 8; // drawing takes at most a part of the time

/** The element of a message. `actions`: retry, edit, goOn, show, toggleBeside, take, each called with the message. */
export class MessageView {
  #message;
  #actions;
  #isUser;
  #markdown;
  #parts;
  #place = { index: 0, count: 1, isBusy: false, isBeside: false, isTaken: true };
  #drawn = "";
  #nextDraw = 0;
  #editing = null;
  #footKey = "";

  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    this.#isUser = message.role === "user";
    const body = element("div", { class: "body", dir: "auto" });
    const thought = element("div", { class: "thought", dir: "auto" });
    const summary = element("summary");
    this.#parts = {
      body,
      thought,
      summary,
      thinking: element("details", { class: "thinking", hidden: true }, summary, thought),
      waiting: element("p", { class: "waiting", "aria-hidden": "true", hidden: true }, element("span")),
      note: element("div", { class: "fault", hidden: true }),
      foot: element("div", { class: "foot" }),
    };
    this.#markdown = new MarkdownView(body);
    const { thinking, waiting, note, foot } = this.#parts;
    this.element = element(
      "article",
      { class: `message ${this.#isUser ? "user" : "assistant"}` },
      element("h2", { class: "hidden" }, this.#isUser ? "You" : "The model"),
      thinking,
      body,
      waiting,
      note,
      foot,
    );
    if (!this.#isUser) body.setAttribute("aria-live", "polite");
  }

  /** Shows the message anew. `place`: its number among its siblings, and the state of the page around it. */
  update(place) {
    Object.assign(this.#place, place);
    const isOpen = this.#message.state === "open";
    this.element.setAttribute("aria-busy", String(isOpen));
    this.#drawThinking();
    this.#drawBody();
    this.#parts.waiting.hidden = !isOpen || Boolean(this.#message.content || this.#message.reasoning);
    this.#drawNote();
    this.#drawFoot();
  }

  /** Shows what has arrived of an answer, if it is time to. Returns whether it did. */
  grow() {
    if (performance.now() < this.#nextDraw) return false;
    const began = performance.now();
    this.#parts.waiting.hidden = Boolean(this.#message.content || this.#message.reasoning);
    this.#drawThinking();
    this.#drawBody();
    const took = performance.now() - began;
    this.#nextDraw = began + Math.min(took * SHARE, SLOWEST_S * 1000);
    return true;
  }

  /** Puts the focus on the button that shows the next (1) or the previous (-1) of the siblings. */
  focusStep(step) {
    const [previous, next] = this.#parts.foot.querySelectorAll(".branches button");
    const wanted = step > 0 ? next : previous;
    (wanted.disabled ? (step > 0 ? previous : next) : wanted).focus();
  }

  #drawThinking() {
    const { thinking, thought, summary } = this.#parts;
    const { reasoning, content, facts, state } = this.#message;
    thinking.hidden = !reasoning;
    if (!reasoning) return;
    const isThinking = state === "open" && !content;
    if (isThinking !== thinking.classList.contains("now")) {
      thinking.classList.toggle("now", isThinking);
      thinking.open = isThinking;
    }
    const seconds = facts?.thoughtS;
    summary.textContent = isThinking ? "Thinking…" : seconds >= 0.1 ? `Thought for ${seconds.toFixed(1)} s` : "Thought";
    if (thought.textContent !== reasoning) thought.textContent = reasoning;
  }

  #drawBody() {
    const { content } = this.#message;
    this.#parts.body.hidden = this.#editing !== null || !content;
    if (this.#drawn === content) return;
    this.#drawn = content;
    if (this.#isUser) this.#parts.body.textContent = content;
    else this.#markdown.show(content);
  }

  #drawNote() {
    const { note } = this.#parts;
    const { state, error, facts } = this.#message;
    const texts = [];
    if (facts?.truncated) texts.push(`The beginning of the chat did not fit: ${facts.truncated} tokens were left out.`);
    if (state === "stopped") texts.push("Stopped.");
    if (state === "length") texts.push("Cut at the limit of tokens.");
    if (state === "failed") texts.push(error?.message ?? "The answer failed.");
    note.hidden = !texts.length;
    note.classList.toggle("failed", state === "failed");
    note.replaceChildren(...texts.map((text) => element("p", {}, text)));
  }

  #drawFoot() {
    const { state, content } = this.#message;
    const { count, isBusy, isBeside, isTaken } = this.#place;
    const actions = [];
    if (state !== "open" && this.#editing === null) {
      if (!isTaken) actions.push(this.#button("Go on with this one", "take", {}));
      if (content) actions.push(copyButton(() => content));
      if (!this.#isUser) actions.push(this.#button("Retry", "retry", { disabled: isBusy }));
      const isCut = state === "stopped" || state === "length" || state === "failed";
      if (isCut && content && isTaken) actions.push(this.#button("Continue", "goOn", { disabled: isBusy }));
      if (content) actions.push(button("Edit", () => this.#edit(), { disabled: isBusy }));
    }
    if (count > 1 && !this.#isUser && isTaken) {
      const text = isBeside ? "One at a time" : "Beside each other";
      actions.push(this.#button(text, "toggleBeside", { "aria-pressed": String(isBeside) }));
    }
    const branches = count > 1 && !isBeside ? this.#branches() : null;
    // an unchanged row keeps its elements, and with them the focus
    const key = JSON.stringify([actions.map((each) => [each.textContent, each.disabled]), this.#place, this.#facts()]);
    if (key === this.#footKey) return;
    this.#footKey = key;
    const facts = element("span", { class: "facts" }, this.#facts());
    this.#parts.foot.replaceChildren(...[branches, ...actions, facts].filter(Boolean));
  }

  #button(text, action, properties) {
    return button(text, () => this.#actions[action](this.#message), properties);
  }

  #branches() {
    const { index, count } = this.#place;
    const step = (by) => () => this.#actions.show(this.#message, by);
    const kind = this.#isUser ? "message" : "answer";
    return element(
      "span",
      { class: "branches", role: "group", "aria-label": `Branches of this ${kind}` },
      iconButton("previous", `Previous ${kind}`, step(-1), { disabled: index === 0 }),
      element("span", {}, `${index + 1}/${count}`),
      iconButton("next", `Next ${kind}`, step(1), { disabled: index === count - 1 }),
    );
  }

  #facts() {
    const { facts, state, role } = this.#message;
    if (role === "user" || state === "open" || !facts?.tokens) return "";
    const shown = [`${facts.tokens.toLocaleString()} tokens`];
    if (facts.rate) shown.push(`${facts.rate.toFixed(1)} tok/s`);
    if (facts.firstS !== undefined) shown.push(`first after ${facts.firstS.toFixed(1)} s`);
    return shown.join(" · ");
  }

  #edit() {
    const area = element("textarea", {
      value: this.#message.content,
      rows: Math.min(12, this.#message.content.split("\n").length + 1),
      "aria-label": this.#isUser ? "Edit your message" : "Edit the answer",
    });
    const close = () => {
      this.#editing.remove();
      this.#editing = null;
      this.update({});
    };
    const save = () => {
      const text = area.value;
      close();
      if (text.trim() && text !== this.#message.content) this.#actions.edit(this.#message, text);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && this.#isUser) save();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      else if (event.key === "Escape") close();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const row = element("div", { class: "row" }, button(this.#isUser ? "Send" : "Save", save), button("Cancel", close));
    this.#editing = element("div", { class: "edit" }, area, row);
    this.#parts.body.after(this.#editing);
    this.update({});
    area.focus();
  }
}
