// The network, in a thread of its own: three graphs of the bundle in ONNX Runtime's WebAssembly or WebGPU.
//
// Messages in: {kind: "load", model, gpu}, {kind: "image", id, image: Float32Array (3, S, S)},
// {kind: "text", id, tokens: BigInt64Array}. Messages out have the `id` of what they answer, or `error`.

const WARM_MILLISECONDS = 500;

let ort, model, sessions, scene;

const handlers = {
  async load({ url, gpu }) {
    model = await (await get(`${url}/model.json`)).json();
    ort = await import(gpu ? "./vendor/ort.webgpu.min.mjs" : "./vendor/ort.wasm.min.mjs");
    ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
    // Threads share memory, which a browser gives to isolated pages only.
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency ?? 1, 8) : 1;
    const began = performance.now();
    const options = { executionProviders: [gpu ? "webgpu" : "wasm"], graphOptimizationLevel: "all" };
    sessions = {};
    for (const [name, { file, bytes }] of Object.entries(model.graphs)) {
      const data = new Uint8Array(await (await get(`${url}/${file}`)).arrayBuffer());
      if (data.length !== bytes) {
        throw new Error(`The model's file ${file} has ${data.length} bytes where ${bytes} are due: load the page again.`);
      }
      sessions[name] = await ort.InferenceSession.create(data, options);
      postMessage({ kind: "progress", file });
    }
    // While it runs for the first times a browser compiles the runtime again, to faster code.
    const warm = performance.now() + WARM_MILLISECONDS;
    do {
      await handlers.image({ image: new Float32Array(3 * model.input_size ** 2) });
      await handlers.text({ tokens: new BigInt64Array(model.word_len).fill(1n) });
    } while (performance.now() < warm);
    scene = null;
    return { threads: ort.env.wasm.numThreads, milliseconds: performance.now() - began };
  },

  async image({ image }) {
    const began = performance.now();
    const side = model.input_size;
    scene = await sessions.image_encoder.run({ image: new ort.Tensor("float32", image, [1, 3, side, side]) });
    return { milliseconds: performance.now() - began };
  },

  async text({ tokens }) {
    const began = performance.now();
    const words = await sessions.text_encoder.run({ tokens: new ort.Tensor("int64", tokens, [1, tokens.length]) });
    const { logits } = await sessions.mask_decoder.run({ ...words, ...scene });
    return { logits: Float32Array.from(logits.data), milliseconds: performance.now() - began };
  },
};

async function get(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} could not be fetched (${answer.status}).`);
  return answer;
}

let last = Promise.resolve(); // one after the other: a session runs one thing at a time
onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      postMessage({ id: data.id, ...(await handlers[data.kind](data)) });
    } catch (error) {
      postMessage({ id: data.id, error: error?.message ?? String(error) });
    }
  });
};
