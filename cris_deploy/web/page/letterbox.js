// A picture becomes the network's square input, as the engine's own letterbox makes it: the longer
// side fills the square, bicubic (a = -0.75) without antialiasing, padded with CLIP's mean colour,
// rounded to bytes, normalised. Coordinates are (x, y), in OpenCV's convention.

const { fround } = Math; // float32 where it decides how a value is rounded: as OpenCV

const MEAN = [0.48145466, 0.4578275, 0.40821073];
const DEVIATION = [0.26862954, 0.26130258, 0.27577711];
const BORDER = [123, 117, 104];

/** Where a picture of height x width lies in a square of side `size`, and back. */
export function frame(height, width, size) {
  const scale = Math.min(size / height, size / width);
  const x = fround((size - width * scale) / 2), y = fround((size - height * scale) / 2);
  const right = fround(width * scale + (size - width * scale) / 2);
  const bottom = fround(height * scale + (size - height * scale) / 2);
  return {
    height, width, size,
    toSquare: { scaleX: (right - x) / width, offsetX: x, scaleY: (bottom - y) / height, offsetY: y },
    toPicture: {
      scaleX: width / (right - x), offsetX: (-x * width) / (right - x),
      scaleY: height / (bottom - y), offsetY: (-y * height) / (bottom - y),
    },
  };
}

/** The four weights of cubic convolution for samples at -1, 0, 1, 2 around a point at t in [0, 1). */
export function cubicWeights(t) {
  const u = 1 - t;
  return [
    -0.75 * t * u * u,
    (1.25 * t - 2.25) * t * t + 1,
    (1.25 * u - 2.25) * u * u + 1,
    -0.75 * u * t * t,
  ];
}

/** RGBA bytes of height x width to float32 (3, size, size). */
export function letterbox(rgba, height, width, size) {
  const { scaleX, offsetX, scaleY, offsetY } = frame(height, width, size).toPicture;
  const at = (scale, offset, i) => fround(fround(fround(scale) * i) + fround(offset));
  const columns = Array.from({ length: size }, (_, x) => samples(at(scaleX, offsetX, x)));
  const rows = Array.from({ length: size }, (_, y) => samples(at(scaleY, offsetY, y)));
  const out = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel++) {
    const border = BORDER[channel];
    const value = (row, column) =>
      row < 0 || row >= height || column < 0 || column >= width
        ? border
        : rgba[(row * width + column) * 4 + channel];
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        let sum = 0;
        for (let j = 0; j < 4; j++) {
          let line = 0;
          for (let i = 0; i < 4; i++) {
            line = fround(line + columns[x].weights[i] * value(rows[y].first + j, columns[x].first + i));
          }
          sum = fround(sum + rows[y].weights[j] * line);
        }
        const byte = roundHalfToEven(Math.min(Math.max(sum, 0), 255));
        out[(channel * size + y) * size + x] = (byte / 255 - MEAN[channel]) / DEVIATION[channel];
      }
    }
  }
  return out;
}

function samples(at) {
  const cell = Math.floor(at);
  return { first: cell - 1, weights: cubicWeights(at - cell).map(fround) };
}

function roundHalfToEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
