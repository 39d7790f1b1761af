// Obeys tests: a line of JSON in, `{page, method, args}`, and a line out, `{value}` or `{error}`. The methods are those
// of Playwright's Page and, beside them, the ones below. Without `page` it opens one.
"use strict";
const fs = require("node:fs");
const readline = require("node:readline");
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const ARGUMENTS = [
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const pages = [];

const own = {
  async axe({ page }) {
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
    return violations.map(({ id, impact, nodes }) => ({
      id,
      impact,
      nodes: nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`),
    }));
  },
  /** Requests, dialogs, errors of scripts and what the console says, since the page was opened. */
  seen: ({ requests, dialogs, faults }) => ({ requests, dialogs, faults }),
  /** The number of pages that its links and scripts have opened. */
  numPages: ({ page }) => page.context().pages().length,
  closeContext: ({ page }) => page.context().close(),
  /** Opens another tab of the same browser. */
  tab: async ({ page }) => watched(await page.context().newPage()),
  press: ({ page }, key) => page.keyboard.press(key),
};

function watched(page) {
  page.setDefaultTimeout(15_000);
  const seen = { page, requests: [], dialogs: [], faults: [] };
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.faults.push(String(error)));
  page.on("console", (message) => message.type() === "error" && seen.faults.push(message.text()));
  page.on("dialog", (dialog) => {
    seen.dialogs.push(dialog.message());
    dialog.dismiss();
  });
  return pages.push(seen) - 1;
}

async function main() {
  const browser = await chromium.launch({
    executablePath: process.argv[2],
    args: ARGUMENTS,
    chromiumSandbox: false, // which no container allows
  });
  const obey = async ({ page, method, args }) => {
    if (page === null) return watched(await (await browser.newContext(args[0])).newPage());
    const value = await (own[method] ? own[method](pages[page], ...args) : pages[page].page[method](...args));
    return ["goto", "reload"].includes(method) ? null : (value ?? null);
  };
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const answer = await obey(JSON.parse(line)).then((value) => ({ value }), (error) => ({ error: String(error) }));
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
  await browser.close();
}

main();
