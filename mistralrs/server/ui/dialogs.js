// The dialogs of the page: settings, the key, and small questions.

import { button, element } from "./elements.js";
import { hasKey } from "./server_api.js";

/** The settings of a chat that nobody has changed: the server's and the model's own. */
export const DEFAULT_SETTINGS = Object.freeze({
  model: "",
  withoutAdapters: false,
  system: "",
  temperature: null,
  topP: null,
  maxTokens: null,
  thinking: null,
});

const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: "any", placeholder: "the model's" }],
  ["topP", "Top-p", { min: 0, max: 1, step: "any", placeholder: "the model's" }],
  ["maxTokens", "Max tokens", { min: 1, step: 1, placeholder: "no limit" }],
];

/** Shows the settings of a chat. Resolves to the new ones, or null if nothing is to change. */
export function editSettings(settings, { models, onForgetKey }) {
  const choices = modelChoices(models, settings);
  const chosen = choices.findIndex(
    ({ model, withoutAdapters }) => model === settings.model && withoutAdapters === settings.withoutAdapters,
  );
  const model = element("select", { id: "set-model" }, ...choices.map(({ text }) => element("option", {}, text)));
  model.selectedIndex = chosen;
  const system = element("textarea", { id: "set-system", rows: 4, value: settings.system });
  const numbers = NUMBERS.map(([name, label, properties]) => {
    const value = settings[name] === null ? "" : String(settings[name]);
    const input = element("input", { id: `set-${name}`, type: "number", inputMode: "decimal", ...properties, value });
    return { name, label, input };
  });
  const thinking = element(
    "select",
    { id: "set-thinking" },
    ...["As the model does by itself", "On", "Off"].map((text) => element("option", {}, text)),
  );
  thinking.selectedIndex = settings.thinking === null ? 0 : settings.thinking ? 1 : 2;
  const canThink = models.some(({ capabilities }) => capabilities?.includes("thinking"));
  const forget = button("Forget the API key", () => {
    onForgetKey();
    forget.remove();
  });
  const fields = [
    field("Model", model),
    field("System message", system, "The model reads it before the chat."),
    element("div", { class: "numbers" }, ...numbers.map(({ label, input }) => field(label, input))),
    canThink ? field("Thinking", thinking) : null,
    hasKey() ? forget : null,
  ];
  return ask("settings", { title: "Settings of this chat", fields, yes: "Save" }, () => ({
    model: choices[model.selectedIndex].model,
    withoutAdapters: choices[model.selectedIndex].withoutAdapters,
    system: system.value.trim(),
    thinking: canThink ? [null, true, false][thinking.selectedIndex] : settings.thinking,
    ...Object.fromEntries(numbers.map(({ name, input }) => [name, input.value === "" ? null : input.valueAsNumber])),
  }));
}

/** Asks for the server's key, with the reason. Resolves to the key, or null. */
export function askForKey(reason) {
  const input = element("input", { id: "key-text", type: "password", required: true, autocomplete: "off" });
  const fields = [element("p", {}, reason), field("API key", input, "This tab keeps it until it is closed.")];
  return ask("key", { title: "The server needs a key", fields, yes: "Use this key" }, () => input.value);
}

/** Asks for a text. Resolves to it, or null. */
export function askForText(title, { label, value, yes }) {
  const input = element("input", { id: "question-text", type: "text", value, required: true, maxLength: 200 });
  return ask("question", { title, fields: [field(label, input)], yes }, () => input.value.trim() || null);
}

/** Asks whether to do something that cannot be undone. */
export async function confirmDeed(title, { text, yes }) {
  return Boolean(await ask("question", { title, fields: [element("p", {}, text)], yes }, () => true));
}

function ask(id, { title, fields, yes }, read) {
  const dialog = document.getElementById(id);
  return new Promise((resolve) => {
    let answer = null;
    const cancel = button("Cancel", () => dialog.close());
    const row = element("div", { class: "row" }, element("button", { type: "submit", class: "filled" }, yes), cancel);
    const form = element("form", { autocomplete: "off" }, element("h2", { id: `${id}-title` }, title), ...fields, row);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer = read();
      dialog.close();
    });
    dialog.replaceChildren(form);
    dialog.addEventListener("close", () => resolve(answer), { once: true });
    dialog.showModal();
  });
}

function field(label, control, hint = null) {
  const note = hint && element("p", { class: "hint", id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return element("div", { class: "field" }, element("label", { htmlFor: control.id }, label), control, note);
}

/** Returns the models and adapters that a chat can have; what it has now is among them. */
function modelChoices(models, { model, withoutAdapters }) {
  const [base, ...others] = models;
  const own = { model: "", withoutAdapters: false, text: base ? base.id : "The served model" };
  const choices = [own];
  if (others.length) {
    choices.push({ model: "", withoutAdapters: true, text: `${base.id}, without adapters` });
    own.text += ", with its default adapters";
    for (const { id } of others) choices.push({ model: id, withoutAdapters: false, text: `adapter ${id}` });
  }
  const isThere = choices.some((each) => each.model === model && each.withoutAdapters === withoutAdapters);
  if (!isThere) choices.push({ model, withoutAdapters, text: model ? `${model} (not on this server)` : "without adapters" });
  return choices;
}
