// The server that showed the page: cris-serve. As BrowserModel it has `open()`, `see(picture)` and
// `find(expression)`; its values are 1 in the mask and 0 elsewhere.

export class ServerModel {
  constructor() {
    this.where = "by the server";
    this.thresholded = true;
  }

  async open() {
    const answer = await fetch("ready").catch(() => null);
    if (!answer?.ok) throw new Error("The server is not ready: try again in a moment.");
    return this;
  }

  /** `original` is the file of a picture that nothing was put on: it is sent as it is. */
  async see(picture, original) {
    this.size = { width: picture.width, height: picture.height };
    this.file = original ?? (await new Promise((resolve) => picture.toBlob(resolve, "image/png")));
    this.image = null;
    return { milliseconds: 0 };
  }

  async find(expression, threshold) {
    const began = performance.now();
    let answer = this.image && (await this.send({ image_id: this.image }, expression, threshold));
    // The server keeps pictures for a while only.
    if (!answer || answer.status === 404) answer = await this.send({ image: this.file }, expression, threshold);
    const { error, image, results } = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(error ?? `The server answers ${answer.status}.`);
    this.image = image.kept_seconds > 0 ? image.id : null;
    const { width, height } = this.size;
    const [{ rle, truncated, confidence }] = results;
    const values = resized(decodeRuns(rle.counts), image, width, height);
    return { values, truncated, confidence, milliseconds: performance.now() - began };
  }

  send(picture, expression, threshold) {
    const form = new FormData();
    for (const [name, value] of Object.entries({ ...picture, expression, threshold })) form.append(name, value);
    return fetch("v1/segment", { method: "POST", body: form }).catch(() => {
      throw new Error("The server cannot be reached.");
    });
  }

  close() {}
}

/** COCO's compressed run lengths to numbers of pixels, column by column, outside first. */
function decodeRuns(text) {
  const counts = [];
  for (let at = 0; at < text.length; ) {
    let value = 0, shift = 0, digit;
    do {
      digit = text.charCodeAt(at++) - 48;
      value |= (digit & 0x1f) << shift;
      shift += 5;
    } while (digit & 0x20);
    if (digit & 0x10 && shift < 32) value |= -1 << shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

/** A mask of `from` as runs to values (height, width), the nearest pixel's. */
function resized(counts, from, width, height) {
  const mask = new Uint8Array(from.width * from.height);
  let at = 0;
  counts.forEach((count, index) => {
    if (index % 2) mask.fill(1, at, at + count);
    at += count;
  });
  const values = new Float32Array(width * height);
  for (let x = 0; x < width; x++) {
    const column = Math.floor(((x + 0.5) * from.width) / width) * from.height;
    for (let y = 0; y < height; y++) {
      values[y * width + x] = mask[column + Math.floor(((y + 0.5) * from.height) / height)];
    }
  }
  return values;
}
