// Loads a page of `cris-export web` in Chromium again and again, with threads and without, by turns:
// node browser.mjs URL MODULES CHROMIUM ROUNDS MASKS. Prints a list of {way, threads, ready, pictures, masks}, in ms.

import { pathToFileURL } from "node:url";

const [url, modules, executablePath, rounds, masks] = process.argv.slice(2);
const { chromium } = await import(pathToFileURL(`${modules}/playwright-core/index.mjs`));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

async function load(way) {
  const context = await browser.newContext(); // with an empty cache
  const page = await context.newPage();
  // Without a service worker a host that sends no headers gives no shared memory, hence one thread.
  if (way === "one thread") await page.addInitScript("delete Navigator.prototype.serviceWorker;");
  const began = performance.now();
  await page.goto(url);
  await page.waitForFunction(
    (alone) => window.cris?.model && (alone || window.crossOriginIsolated), way === "one thread", { timeout: 120000 });
  const ready = performance.now() - began;
  const figures = await page.evaluate(async (masks) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 480 });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    const { model } = window.cris;
    const found = { pictures: [], masks: [] };
    for (let number = 0; number < masks; number += 1) {
      pixels.data.forEach((_, index) => (pixels.data[index] = index % 4 === 3 ? 255 : Math.random() * 256));
      context.putImageData(pixels, 0, 0);
      const began = performance.now();
      await model.see(canvas);
      const seen = performance.now();
      await model.find(`the red thing left of number ${number}`);
      found.pictures.push(seen - began);
      found.masks.push(performance.now() - seen);
    }
    return { threads: Number.parseInt(model.where), ...found };
  }, Number(masks));
  await context.close();
  return { way, ready, ...figures };
}

try {
  const loads = [];
  for (let round = 0; round < Number(rounds); round += 1) {
    for (const way of round % 2 ? ["threads", "one thread"] : ["one thread", "threads"]) loads.push(await load(way));
  }
  process.stdout.write(JSON.stringify(loads));
} finally {
  await browser.close();
}
