// Markdown of a model as elements. A model's text is hostile: its HTML is shown as text, only the tags that Markdown
// itself makes come through, links lead to web pages and mail only, and no picture is fetched.

import { copyButton, element } from "./elements.js";
import { Lexer, Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.mjs";

// Text beyond these is shown as it is: the time that emphasis takes grows with the square of its marks in a paragraph.
const MOST_CHARACTERS = 200_000;
const MOST_MARKS = 400;
const CLEAN = {
  ALLOWED_TAGS: [
    ..."p br hr h3 h4 h5 h6 strong em del code pre blockquote ul ol li a".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "title", "start", "align", "class"],
  ADD_URI_SAFE_ATTR: ["start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const LANGUAGE = /^language-[\w+#.-]{1,30}$/;

const marked = new Marked({
  renderer: {
    html: ({ text }) => (/^<br\s*\/?>$/i.test(text.trim()) ? "<br>" : escaped(text)),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6); // below the page's own
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

class BoundedLexer extends Lexer {
  inlineTokens(source, tokens = []) {
    if ((source.match(/[*_~]/g)?.length ?? 0) <= MOST_MARKS) return super.inlineTokens(source, tokens);
    tokens.push({ type: "text", raw: source, text: source, escaped: false });
    return tokens;
  }
}

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.nodeName !== "CODE" || !LANGUAGE.test(node.className)) node.removeAttribute("class");
});

/** Shows a text that grows: blocks that did not change keep their elements. */
export class MarkdownView {
  #parent;
  #blocks = [];

  constructor(parent) {
    this.#parent = parent;
  }

  /** Shows `text` in place of what was shown before. */
  show(text) {
    const blocks = blocksOf(text);
    const shown = this.#blocks;
    let same = 0;
    while (same < Math.min(shown.length, blocks.length) && shown[same].key === blocks[same].key) same += 1;
    for (const { nodes } of shown.splice(same)) for (const node of nodes) node.remove();
    for (const block of blocks.slice(same)) {
      const nodes = block.make();
      this.#parent.append(...nodes);
      shown.push({ key: block.key, nodes });
    }
  }
}

function blocksOf(text) {
  if (text.length > MOST_CHARACTERS) return [plain(text)];
  try {
    const tokens = new BoundedLexer({ ...marked.defaults }).lex(text);
    return tokens
      .map((token) => marked.parser([token]))
      .map((html) => ({ key: html, make: () => elementsOf(html) }));
  } catch (error) {
    console.warn("the text is shown as it is:", error); // such as ten thousand nested quotations
    return [plain(text)];
  }
}

function plain(text) {
  return { key: `plain ${text}`, make: () => [element("p", { class: "plain" }, text)] };
}

function elementsOf(html) {
  const fragment = DOMPurify.sanitize(html, CLEAN);
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre);
  for (const table of fragment.querySelectorAll("table")) {
    const frame = element("div", { class: "wide-table", tabIndex: 0, role: "group", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return [...fragment.childNodes];
}

function frameCode(pre) {
  const language = pre.querySelector("code")?.className.replace("language-", "") ?? "";
  const frame = element("div", { class: "code" });
  pre.replaceWith(frame);
  pre.tabIndex = 0; // long lines are scrolled with the keyboard too
  const copy = copyButton(() => pre.textContent.replace(/\n$/, ""), { "aria-label": "Copy the code" });
  frame.append(element("div", { class: "code-head" }, element("span", {}, language), copy), pre);
}

function escaped(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (character) => names[character]);
}
