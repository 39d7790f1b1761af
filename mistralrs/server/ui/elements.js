// Elements of the page, made without any text becoming markup.

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  chats: "M4 6h16M4 12h16M4 18h10",
  close: "M6 6l12 12M18 6L6 18",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M16 4.6v4.8M8 14.6v4.8",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  light: "M12 8a4 4 0 100 8 4 4 0 000-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M19 5l-1.4 1.4M6.4 17.6L5 19",
  dark: "M20 14.5A8.5 8.5 0 119.5 4a7 7 0 0010.5 10.5z",
  system: "M12 4a8 8 0 100 16zM12 4a8 8 0 010 16",
  rename: "M5 19l1-4L16 5l3 3L9 18z",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  previous: "M14 6l-6 6 6 6",
  next: "M10 6l6 6-6 6",
};

/**
 * Returns a new element. `properties`: its properties, with `class` for its classes, `on` for listeners by event and
 * names with a hyphen for attributes; null and undefined are left out. `children`: nodes and texts.
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (key === "class") made.className = value;
    else if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Returns a picture from the table, which says nothing to a screen reader. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  return svg;
}

/** Returns a button with a text. */
export function button(text, onClick, properties = {}) {
  return element("button", { type: "button", ...properties, on: { click: onClick } }, text);
}

/** Returns a button with a picture; `label` is its name. */
export function iconButton(name, label, onClick, properties = {}) {
  const made = element("button", {
    type: "button",
    class: "icon",
    title: label,
    "aria-label": label,
    ...properties,
    on: { click: onClick },
  });
  made.append(icon(name));
  return made;
}

/** Copies a text, also where the page is not served from this machine or over HTTPS. Returns whether it did. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { value: text, class: "hidden", "aria-hidden": "true" });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

/** Returns a button that copies the text that `text` returns, and says that it did. */
export function copyButton(text, properties = {}) {
  const made = button(
    "Copy",
    async () => {
      made.textContent = (await copyText(text())) ? "Copied" : "Not copied";
      setTimeout(() => {
        made.textContent = "Copy";
      }, 1500);
    },
    properties,
  );
  return made;
}
