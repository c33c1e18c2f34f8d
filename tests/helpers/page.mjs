// Drives a page in Chromium: node page.mjs URL MODULES CHROMIUM < plan.json > report.json
//
// The plan has `steps`; each gives one entry of the report: {do: "ready"}, {do: "picture", file},
// {do: "find", words}, {do: "tokens", words}, {do: "square"}, {do: "put", name}, {do: "key", keys}, {do: "offline"},
// {do: "reload"}, {do: "wait", text}, {do: "screenshot", file}, {do: "text", id}.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [url, modules, executablePath] = process.argv.slice(2);
const { chromium } = await import(pathToFileURL(`${modules}/playwright-core/index.mjs`));
const plan = JSON.parse(readFileSync(0, "utf-8"));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", ...(plan.flags ?? [])] });
const context = await browser.newContext({ viewport: plan.viewport ?? { width: 1200, height: 850 } });
const page = await context.newPage();
if (plan.script) await page.addInitScript(plan.script);
const errors = [];
page.on("pageerror", (error) => errors.push(error.message));

const text = (id) => page.evaluate((id) => document.getElementById(id).textContent, id);
const settled = () =>
  page.waitForFunction(() => window.cris?.queries.every((query) => (query.values && query.found) || query.error), null, { timeout: 60000 });

const steps = {
  async ready() {
    await page.waitForFunction(() => window.cris?.model && document.getElementById("where").textContent, null, { timeout: 60000 });
    // A host without headers makes the page load itself once more, to be isolated.
    await page.waitForFunction(() => window.crossOriginIsolated || !navigator.serviceWorker, null, { timeout: 30000 }).catch(() => {});
    await page.waitForFunction(() => window.cris?.model, null, { timeout: 60000 });
    return page.evaluate(() => ({ isolated: window.crossOriginIsolated, milliseconds: window.cris.model.loadTime }));
  },
  async picture({ file }) {
    await page.evaluate(() => (document.getElementById("problem").textContent = "?"));
    await page.setInputFiles("#file", file);
    await page.waitForFunction(() => document.getElementById("problem").textContent !== "?");
    return text("problem");
  },
  async find({ words }) {
    await page.evaluate((words) => {
      for (const query of [...window.cris.queries]) query.row.querySelector("button").click();
      for (const word of words) window.cris.ask(word);
    }, words);
    await settled();
    return page.evaluate(() => {
      const least = Number(document.getElementById("threshold").value);
      return window.cris.queries.map(({ text, values, logits, error, truncated, milliseconds }) => ({
        text, error, truncated, milliseconds, logits: logits && Array.from(logits),
        mask: values && Array.from(values, (value) => (value > Math.fround(least) ? "1" : "0")).join(""),
      }));
    });
  },
  tokens: ({ words }) => page.evaluate((words) => words.map((word) => {
    try {
      return Array.from(window.cris.model.words.encode(word).tokens, Number);
    } catch (error) {
      return error.message;
    }
  }), words),
  square: () => page.evaluate(async () => {
    const { letterbox } = await import("./letterbox.js");
    const { width, height } = document.getElementById("picture");
    const rgba = document.getElementById("picture").getContext("2d").getImageData(0, 0, width, height).data;
    return Array.from(letterbox(rgba, height, width, window.cris.model.facts.input_size));
  }),
  async put({ name }) {
    await page.click(`#things button[title="${name}"]`);
    await page.waitForSelector(`#handles button[title="${name}"]`);
    return page.evaluate(() => window.cris.scene.things.length);
  },
  async key({ keys }) {
    await page.focus("#handles button");
    for (const key of keys) await page.keyboard.press(key);
    return page.evaluate(() => window.cris.scene.things.map(({ name, x, y, size, angle }) => ({ name, x, y, size, angle })));
  },
  async type({ words }) {
    await page.fill("#words", words);
    await page.keyboard.press("Enter");
    await settled();
    return text("legend");
  },
  async offline() { await context.setOffline(true); },
  async reload() { await page.reload(); },
  async choose({ engine }) { await page.check(`#engines [value=${engine}]`); await page.waitForFunction(() => window.cris.model, null, { timeout: 120000 }); },
  async wait({ text: part }) {
    await page.waitForFunction((part) => document.body.textContent.includes(part), part, { timeout: 60000 });
  },
  async screenshot({ file }) { await page.screenshot({ path: file }); },
  text: ({ id }) => text(id),
};

const report = [];
try {
  await page.goto(url);
  for (const step of plan.steps) report.push((await steps[step.do](step)) ?? null);
  process.stdout.write(JSON.stringify({ report, errors }));
} catch (error) {
  process.stderr.write(`step ${report.length}: ${error.message}; page says: ${await text("problem").catch(() => "?")}; ${errors}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
