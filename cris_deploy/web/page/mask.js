// From the network's logits to probabilities at the picture's size: sigmoid, bicubic to the square
// input with corners aligned, bicubic back to the picture with zeros outside the square. Both steps
// are separable, so per axis they are one filter of at most five samples, as in kernels/filter.h.

import { cubicWeights, frame } from "./letterbox.js";

const TAPS = 5;
const PAD = 3; // samples repeated beyond the edges of the logits

/** Logits (source, source) float32 to probabilities (height, width) float32; NaN counts as 0. */
export function probabilities(logits, source, size, height, width) {
  const { scaleX, offsetX, scaleY, offsetY } = frame(height, width, size).toSquare;
  const columns = axis(scaleX, offsetX, width, source, size);
  const rows = axis(scaleY, offsetY, height, source, size);
  const side = source + 2 * PAD;
  const padded = new Float32Array(side * side);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      padded[y * side + x] = sigmoid(logits[inside(y - PAD, source) * source + inside(x - PAD, source)]);
    }
  }
  const out = new Float32Array(height * width);
  const line = new Float32Array(side);
  for (let y = 0; y < height; y++) {
    line.fill(0);
    for (let k = 0; k < TAPS; k++) {
      const weight = rows.weights[y * TAPS + k];
      if (weight === 0) continue;
      const start = (rows.first[y] + k) * side;
      for (let x = 0; x < side; x++) line[x] += weight * padded[start + x];
    }
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let k = 0; k < TAPS; k++) sum += columns.weights[x * TAPS + k] * (line[columns.first[x] + k] || 0);
      out[y * width + x] = sum;
    }
  }
  return out;
}

/** What of a map of probabilities is above the threshold: bytes 0 or 1, their number, the mean of theirs. */
export function threshold(values, least) {
  const limit = Math.fround(least);
  const mask = new Uint8Array(values.length);
  let area = 0, sum = 0;
  for (let i = 0; i < values.length; i++) {
    if (values[i] > limit) {
      mask[i] = 1;
      area += 1;
      sum += Math.min(values[i], 1);
    }
  }
  return { mask, area, confidence: area ? sum / area : 0 };
}

function sigmoid(x) {
  return Number.isNaN(x) ? 0 : 1 / (1 + Math.exp(-x));
}

function inside(i, count) {
  return Math.min(Math.max(i, 0), count - 1);
}

function axis(scale, offset, count, source, size) {
  const first = new Int32Array(count), weights = new Float32Array(count * TAPS);
  const ratio = size > 1 ? (source - 1) / (size - 1) : 0;
  for (let position = 0; position < count; position++) {
    const at = scale * position + offset;
    const cell = Math.floor(at), outer = cubicWeights(at - cell);
    let start = -1;
    for (let k = 0; k < 4; k++) {
      const i = cell - 1 + k;
      if (i < 0 || i >= size) continue; // outside the square is zero
      const base = Math.floor(i * ratio), inner = cubicWeights(i * ratio - base);
      if (start < 0) start = base - 1 + PAD;
      // Four neighbours in the square span less than one sample of the logits.
      const shift = base - 1 + PAD - start;
      for (let j = 0; j < 4; j++) weights[position * TAPS + shift + j] += outer[k] * inner[j];
    }
    first[position] = Math.max(start, 0);
  }
  return { first, weights };
}
