// The path of a chat on the page: one message after another, and answers beside each other where that was asked for.

import { pathTo, siblings } from "./chat_tree.js";
import { element } from "./elements.js";
import { MessageView } from "./message_view.js";

const NEAR_END = 90; // pixels from the end within which the page follows an answer

/** Shows a chat in a list element that `scroller` scrolls. `actions` are those of MessageView, and `changed`. */
export class ThreadView {
  #list;
  #scroller;
  #actions;
  #chat = null;
  #views = new Map();
  #beside = new Set();
  #growing = null;

  constructor(list, scroller, actions) {
    this.#list = list;
    this.#scroller = scroller;
    this.#actions = {
      ...actions,
      toggleBeside: (message) => {
        if (!this.#beside.delete(message.parent)) this.#beside.add(message.parent);
        actions.changed();
      },
    };
  }

  /** Shows the path of a chat. `isBusy`: an answer is coming, so that no other can be asked for. */
  show(chat, { isBusy }) {
    const follows = this.#isAtEnd || chat !== this.#chat;
    if (chat !== this.#chat) {
      this.#chat = chat;
      this.#views.clear();
      this.#beside.clear();
    }
    const rows = pathTo(chat).map((message) => this.#row(message, isBusy));
    const stands = [...this.#list.children];
    let same = 0; // rows that stay are not touched, and keep focus and selection
    while (same < rows.length && rows[same] === stands[same]) same += 1;
    for (const row of stands.slice(same)) row.remove();
    this.#list.append(...rows.slice(same));
    if (follows) this.toEnd();
  }

  /** Shows what has arrived of an answer, as soon as the browser draws and it is time to. */
  grow(message) {
    if (this.#growing === null) requestAnimationFrame(() => this.#grow());
    this.#growing = message;
  }

  /** Scrolls to the end. */
  toEnd() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  /** Puts the focus on the button that steps on among the siblings of a message. */
  focusStep(message, step) {
    this.#views.get(message.id)?.focusStep(step);
  }

  #grow() {
    const message = this.#growing;
    this.#growing = null;
    const view = this.#views.get(message.id);
    if (!view || message.state !== "open") return; // it is drawn whole
    const follows = this.#isAtEnd;
    if (!view.grow()) this.grow(message);
    else if (follows) this.toEnd();
  }

  get #isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  #row(message, isBusy) {
    const all = siblings(this.#chat, message);
    const isBeside = all.length > 1 && message.role === "assistant" && this.#beside.has(message.parent);
    const shown = isBeside ? all : [message];
    const elements = shown.map((each) => {
      const place = { index: all.indexOf(each), count: all.length, isBusy, isBeside, isTaken: each === message };
      const view = this.#viewOf(each);
      view.update(place);
      view.element.classList.toggle("taken", isBeside && place.isTaken);
      return view.element;
    });
    const kind = isBeside ? "beside" : "single";
    const stands = elements[0].parentElement;
    const isSame = stands?.className === kind && stands.children.length === elements.length;
    if (isSame && elements.every((each, index) => each === stands.children[index])) return stands;
    const scrolls = isBeside ? { tabIndex: 0, "aria-label": "Answers beside each other" } : {};
    return element("li", { class: kind, ...scrolls }, ...elements);
  }

  #viewOf(message) {
    const view = this.#views.get(message.id) ?? new MessageView(message, this.#actions);
    this.#views.set(message.id, view);
    return view;
  }
}
