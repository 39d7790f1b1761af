// The list of chats beside the thread.

import { element, iconButton } from "./elements.js";

/** Shows chats in a list element. `actions`: open, rename, remove, each called with the chat. */
export class ChatList {
  #list;
  #actions;

  constructor(list, actions) {
    this.#list = list;
    this.#actions = actions;
  }

  /** Shows those of `chats` whose title has the text `filter`; `current` is the id of the open one. */
  show(chats, { current, filter }) {
    const wanted = filter.trim().toLocaleLowerCase();
    const shown = chats.filter(({ title }) => title.toLocaleLowerCase().includes(wanted));
    const focused = document.activeElement?.closest("li")?.dataset.id;
    this.#list.replaceChildren(...shown.map((chat) => this.#row(chat, chat.id === current)));
    if (focused) this.#list.querySelector(`[data-id="${focused}"] .chat`)?.focus();
  }

  #row(chat, isCurrent) {
    const title = chat.title || "New chat";
    const open = element(
      "button",
      { type: "button", class: "chat", dir: "auto", title, on: { click: () => this.#actions.open(chat) } },
      title,
    );
    if (isCurrent) open.setAttribute("aria-current", "true");
    const row = element(
      "li",
      { class: isCurrent ? "current" : "" },
      open,
      element(
        "span",
        { class: "actions" },
        iconButton("rename", `Rename “${title}”`, () => this.#actions.rename(chat)),
        iconButton("remove", `Delete “${title}”`, () => this.#actions.remove(chat)),
      ),
    );
    row.dataset.id = chat.id;
    return row;
  }
}
