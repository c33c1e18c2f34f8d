// The bundle in this browser. As ServerModel it has `open()`, `see(picture)` and `find(expression)`,
// which gives probabilities at the picture's size.

import { letterbox } from "./letterbox.js";
import { probabilities } from "./mask.js";
import { Words } from "./words.js";

const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
]);

export class BrowserModel {
  /** `url` is the folder of the model, `gpu` whether WebGPU is to compute. */
  constructor(url, gpu = false) {
    this.url = url;
    this.gpu = gpu;
    this.waiting = new Map();
    this.next = 0;
  }

  /** Load everything; `progress(done, all)` hears of each file. Rejects with a sentence. */
  async open(progress = () => {}) {
    if (typeof WebAssembly === "undefined" || !WebAssembly.validate(SIMD)) {
      throw new Error("This browser has no WebAssembly SIMD: take one of the last four years.");
    }
    const [facts, tokenizer] = await Promise.all(
      ["model.json", "tokenizer.json"].map(async (file) => {
        const answer = await fetch(`${this.url}/${file}`);
        if (!answer.ok) throw new Error(`The model's ${file} is missing (${answer.status}).`);
        return answer.json().catch(() => {
          throw new Error(`The model's ${file} is broken: export it again.`);
        });
      }),
    );
    this.facts = facts;
    this.words = new Words(tokenizer, facts.word_len);
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    const files = Object.keys(facts.graphs).length;
    let done = 0;
    this.worker.onmessage = ({ data }) => {
      if (data.kind === "progress") return progress(++done, files);
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if (data.error) reject(new Error(sentence(data.error)));
      else resolve(data);
    };
    this.worker.onerror = (event) => {
      const error = new Error(sentence(event.message || "The worker could not start."));
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
    const { threads, milliseconds } = await this.ask({ kind: "load", url: new URL(this.url, location.href).href, gpu: this.gpu });
    this.where = this.gpu ? "GPU" : `${threads} thread${threads > 1 ? "s" : ""}`;
    this.loadTime = milliseconds;
    return this;
  }

  async see(picture) {
    const { width, height } = picture;
    const rgba = picture.getContext("2d").getImageData(0, 0, width, height).data;
    this.size = { width, height };
    const image = letterbox(rgba, height, width, this.facts.input_size);
    return this.ask({ kind: "image", image }, [image.buffer]);
  }

  /** Give {values: Float32Array (height, width), logits, truncated, milliseconds}. */
  async find(expression) {
    const { width, height } = this.size;
    const { tokens, truncated } = this.words.encode(expression);
    const { logits, milliseconds } = await this.ask({ kind: "text", tokens });
    const values = probabilities(logits, this.facts.mask_size, this.facts.input_size, height, width);
    return { values, logits, truncated, milliseconds };
  }

  close() {
    this.worker?.terminate();
  }

  ask(message, transfer = []) {
    return new Promise((resolve, reject) => {
      const id = this.next++;
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ ...message, id }, transfer);
    });
  }
}

/** What went wrong as one sentence that a person reads. */
function sentence(message) {
  if (/out of memory|allocation failed|bad_alloc|Array buffer allocation/i.test(message)) {
    return "There is not enough memory for the model here: close other pages, or use a smaller bundle.";
  }
  if (/protobuf|invalid model|Load model|INVALID_PROTOBUF/i.test(message)) {
    return "The model's files are broken: export them again, and load the page anew.";
  }
  return message;
}
