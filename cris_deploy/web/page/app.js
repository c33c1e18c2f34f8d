// The page: a scene, words, a model that finds them, and masks drawn over the picture.

import { threshold as above } from "./mask.js";
import { Scene } from "./scene.js";

// RGB. Okabe and Ito's palette (2008), as in the engine's overlays.
const PALETTE = [[213, 94, 0], [0, 114, 178], [0, 158, 115], [204, 121, 167], [240, 228, 66], [86, 180, 233], [230, 159, 0]];
const MOST_QUERIES = 12;

const $ = (id) => document.getElementById(id);
const queries = []; // {text, colour, values, confidence, error, truncated, milliseconds, row}
let model, scene, settings;
let seen = false, busy = false, again = false;

start();

async function start() {
  await isolate();
  try {
    settings = await (await fetch("page.json")).json();
    scene = new Scene($("picture"), $("handles"), () => { seen = false; update(); });
    await furnish();
    wire();
    await choose(settings.engines[0]);
  } catch (error) {
    $("where").textContent = "";
    tell(error);
  }
}

/** Threads need an isolated page; a host without such headers gets them from the service worker, once. */
async function isolate() {
  if (!("serviceWorker" in navigator) || !window.isSecureContext) return;
  const kept = navigator.serviceWorker.register("sw.js").then(settled, () => false);
  if (window.crossOriginIsolated || sessionStorage.getItem("isolated")) return;
  sessionStorage.setItem("isolated", "asked");
  $("where").textContent = "Fetching the model …";
  if (!(await kept)) return; // it goes on without threads
  location.reload();
  await new Promise(() => {}); // what is loaded now would be loaded again
}

/** Whether a service worker has fetched all its files. */
function settled({ installing, waiting, active }) {
  const worker = installing ?? waiting ?? active;
  return new Promise((resolve) => {
    const look = () => {
      if (["activated", "redundant"].includes(worker.state)) resolve(worker.state === "activated");
    };
    worker.addEventListener("statechange", look);
    look();
  });
}

async function furnish() {
  const picture = async (file) => {
    const image = new Image();
    image.src = file;
    await image.decode();
    return image;
  };
  await scene.show(await picture(settings.backgrounds[0]));
  const things = new Map();
  for (const { name, file } of settings.things) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-label", `put ${name} on the picture`);
    const image = new Image();
    image.src = file;
    image.alt = "";
    things.set(name, image);
    button.append(image);
    button.onclick = () => image.decode().then(() => scene.put({ name, image }), tell);
    $("things").append(button);
  }
  for (const { name, x, y, size, angle } of settings.arranged) {
    const image = things.get(name);
    await image.decode();
    scene.put({ name, image }, x, y, size, angle);
  }
  $("things").parentElement.hidden = $("clear").hidden = !settings.things.length;
  $("moving").hidden = !settings.things.length;
  for (const text of settings.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.onclick = () => ask(text);
    $("examples").append(button);
  }
  let background = 0;
  $("background").hidden = settings.backgrounds.length < 2;
  $("background").onclick = async () => {
    background = (background + 1) % settings.backgrounds.length;
    await scene.show(await picture(settings.backgrounds[background])).catch(tell);
  };
  for (const engine of settings.engines) {
    if (engine === "gpu" && !navigator.gpu) continue;
    const label = document.createElement("label"), radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "engine", value: engine, checked: engine === settings.engines[0] });
    radio.onchange = () => choose(engine);
    label.append(radio, ` ${{ cpu: "this browser", gpu: "this browser's GPU", server: "the server" }[engine]}`);
    $("engines").append(label);
  }
  $("engines").hidden = $("engines").children.length < 2;
  $("about").textContent = settings.about;
}

function wire() {
  $("ask").onsubmit = (event) => {
    event.preventDefault();
    ask($("words").value);
    $("words").value = "";
  };
  $("words").oninput = () => { live($("words").value); };
  $("threshold").oninput = () => {
    $("level").textContent = Number($("threshold").value).toFixed(2);
    if (model?.thresholded) for (const query of queries) query.values = null;
    update();
  };
  $("file").onchange = () => own($("file").files[0]);
  $("clear").onclick = () => scene.empty();
  $("save").onclick = save;
  const frame = $("frame");
  frame.ondragover = (event) => { event.preventDefault(); frame.classList.add("over"); };
  frame.ondragleave = () => frame.classList.remove("over");
  frame.ondrop = (event) => {
    event.preventDefault();
    frame.classList.remove("over");
    own(event.dataTransfer.files[0]);
  };
}

/** Only what computes is loaded: a server's page has no runtime beside it. */
async function modelOf(engine) {
  if (engine === "server") return new (await import("./server-model.js")).ServerModel();
  return new (await import("./browser-model.js")).BrowserModel("model", engine === "gpu");
}

async function choose(engine) {
  const before = model;
  model = null;
  before?.close();
  $("where").textContent = "Loading the model …";
  let next = null;
  try {
    next = await modelOf(engine);
    await next.open((done, all) => ($("where").textContent = `Loading the model, ${done} of ${all} …`));
  } catch (error) {
    next?.close();
    $("where").textContent = "";
    if (engine === "gpu") {
      tell(new Error(`The GPU cannot run this model (${error.message}): this browser's CPU goes on.`));
      document.querySelector("#engines [value=cpu]").checked = true;
      return choose("cpu");
    }
    return tell(error);
  }
  model = next;
  $("threshold").value = settings.threshold;
  $("level").textContent = settings.threshold.toFixed(2);
  tell(null);
  seen = false;
  update();
}

async function own(file) {
  if (!file) return;
  try {
    scene.empty();
    await scene.show(file);
    tell(scene.shrunk ? new Error(`The picture is searched at ${$("picture").width} × ${$("picture").height} pixels.`) : null);
  } catch (error) {
    tell(error);
  }
}

/** What is being typed is shown as a mask before it is added. */
function live(text) {
  const draft = queries.find((query) => query.draft);
  if (!text.trim()) {
    if (draft) drop(draft);
  } else if (draft) {
    Object.assign(draft, { text, values: null, error: null });
    describe(draft);
  } else {
    add({ text, draft: true });
  }
  update();
}

function ask(text) {
  const draft = queries.find((query) => query.draft);
  if (draft) drop(draft);
  if (!text.trim()) return tell(new Error("There are no words: say what to find."));
  if (queries.some((query) => query.text === text)) return;
  if (queries.length >= MOST_QUERIES) return tell(new Error(`${MOST_QUERIES} expressions are shown: remove one.`));
  tell(null);
  add({ text });
  update();
}

function add(query) {
  const used = new Set(queries.map((other) => other.colour));
  query.colour = PALETTE.find((colour) => !used.has(colour)) ?? PALETTE[queries.length % PALETTE.length];
  query.row = document.createElement("li");
  queries.push(query);
  $("legend").append(query.row);
  describe(query);
}

function drop(query) {
  queries.splice(queries.indexOf(query), 1);
  query.row.remove();
  paint();
}

function describe(query) {
  const swatch = document.createElement("span"), text = document.createElement("span");
  const figures = document.createElement("span"), remove = document.createElement("button");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${query.colour})`;
  text.textContent = query.text;
  figures.className = "figures";
  if (query.error) figures.textContent = query.error;
  else if (query.values) {
    const { area } = query.found, confidence = query.confidence ?? query.found.confidence;
    const part = `${((100 * area) / query.values.length).toFixed(1)} %`;
    const time = `${query.milliseconds.toFixed(0)} ms`;
    figures.textContent = area ? `${part}, sure ${confidence.toFixed(2)}, ${time}` : "nothing found";
    if (query.truncated) figures.textContent += ", words cut";
  }
  remove.type = "button";
  remove.textContent = "×";
  remove.setAttribute("aria-label", `remove ${query.text}`);
  remove.onclick = () => drop(query);
  query.row.replaceChildren(swatch, text, figures, remove);
}

/** Look again where the picture or the words changed; one run at a time, the newest state wins. */
async function update() {
  if (!model) return;
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    do {
      again = false;
      await look(model);
    } while (again);
  } finally {
    busy = false;
  }
}

async function look(with_) {
  if (!seen) {
    seen = true;
    try {
      const { milliseconds } = await with_.see($("picture"), scene.original);
      const time = milliseconds ? `, picture ${milliseconds.toFixed(0)} ms` : "";
      $("where").textContent = `${settings.title}, ${with_.where}${time}`;
    } catch (error) {
      return tell(error);
    }
    for (const query of queries) query.values = null;
  }
  const least = Number($("threshold").value);
  for (const query of [...queries]) {
    if (query.values) continue;
    const text = query.text;
    try {
      const found = await with_.find(text, least);
      if (query.text === text) Object.assign(query, found, { error: null });
    } catch (error) {
      query.error = error.message;
    }
    if (again && !seen) return;
  }
  paint();
}

function paint() {
  const { width, height } = $("picture"), canvas = $("masks");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
  const least = Number($("threshold").value);
  for (const query of queries) {
    if (!query.values || query.values.length !== width * height) continue;
    query.found = above(query.values, least);
    overlay(picture, query.found.mask, query.colour, width, height);
    describe(query);
  }
  for (const query of queries) if (query.error) describe(query);
  context.putImageData(picture, 0, 0);
}

/** The colour over the mask, lightly, and its outline in full with a white line beside it. */
function overlay({ data }, mask, [red, green, blue], width, height) {
  const reach = Math.max(1, Math.round(Math.max(width, height) / 400));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      if (!mask[at]) continue;
      const edge = (distance) =>
        x < distance || y < distance || x + distance >= width || y + distance >= height ||
        !mask[at - distance] || !mask[at + distance] || !mask[at - distance * width] || !mask[at + distance * width];
      const line = edge(reach) ? 255 : edge(2 * reach) ? -1 : 96;
      data.set(line < 0 ? [255, 255, 255, 200] : [red, green, blue, line], 4 * at);
    }
  }
}

function save() {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: $("picture").width, height: $("picture").height });
  const context = canvas.getContext("2d");
  context.drawImage($("picture"), 0, 0);
  context.drawImage($("masks"), 0, 0);
  const link = document.createElement("a");
  link.download = "masks.png";
  link.href = canvas.toDataURL("image/png");
  link.click();
}

function tell(problem) {
  $("problem").textContent = problem?.message ?? "";
}

// For tests: what the page knows.
window.cris = { queries, get model() { return model; }, get scene() { return scene; }, ask };
