/**
 * Faults of super-resolution models, made on purpose inside an ellipse. Pure: pixels in, pixels out; no chance but a seeded one.
 * `data_synth/effects` has many more, for training; these few are for the eye.
 */

/** kind → its name, and how a pixel inside looks: (pixels, x, y) → [r, g, b]. */
export const KINDS = {
  ringing: { name: "Ringing around edges", at: ringing },
  painterly: { name: "Painterly texture", at: painterly },
  checkerboard: { name: "Checkerboard", at: checkerboard },
  blocks: { name: "Blocks", at: blocks },
  noise: { name: "Noise", at: noise },
};

/**
 * @typedef {{kind: keyof KINDS, x: number, y: number, radius: number}} Defect centre and radius in px
 * @param {ImageData} pixels
 * @param {Defect} defect
 * @returns {ImageData} new pixels; outside of the ellipse they are the old ones
 */
export function planted(pixels, defect) {
  const out = new ImageData(new Uint8ClampedArray(pixels.data), pixels.width, pixels.height);
  const effect = KINDS[defect.kind].at;
  for (const [x, y] of inside(defect, pixels.width, pixels.height)) {
    const share = Math.min(1, 6 * (1 - distance(defect, x, y))); // a soft rim, so that the cut itself is no edge
    const [i, colour] = [4 * (y * pixels.width + x), effect(pixels, x, y)];
    for (let c = 0; c < 3; c++) out.data[i + c] = (1 - share) * pixels.data[i + c] + share * colour[c];
  }
  return out;
}

/** Pixels [x, y] of a defect's place. */
export function* inside(defect, width, height) {
  const { x: cx, y: cy, radius } = defect;
  for (let y = Math.max(0, Math.floor(cy - radius)); y <= Math.min(height - 1, cy + radius); y++) {
    for (let x = Math.max(0, Math.floor(cx - radius)); x <= Math.min(width - 1, cx + radius); x++) {
      if (distance(defect, x, y) < 1) yield [x, y];
    }
  }
}

function distance({ x: cx, y: cy, radius }, x, y) {
  return Math.hypot(x - cx, y - cy) / radius;
}

function at(pixels, x, y, channel) {
  const u = Math.min(pixels.width - 1, Math.max(0, x));
  const v = Math.min(pixels.height - 1, Math.max(0, y));
  return pixels.data[4 * (v * pixels.width + u) + channel];
}

/** Mean and variance, summed over channels, of the window [x0, x1] × [y0, y1]. */
function statistics(pixels, x0, y0, x1, y1) {
  const count = (x1 - x0 + 1) * (y1 - y0 + 1);
  let variance = 0;
  const mean = [0, 1, 2].map((channel) => {
    let [sum, squares] = [0, 0];
    for (let y = y0; y <= y1; y++) {
      for (let x = x0; x <= x1; x++) {
        const value = at(pixels, x, y, channel);
        sum += value;
        squares += value * value;
      }
    }
    variance += squares / count - (sum / count) ** 2;
    return sum / count;
  });
  return { mean, variance };
}

/** Kuwahara's filter: the mean of the calmest of four windows around a pixel, which looks like strokes of a brush. */
function painterly(pixels, x, y) {
  const reach = 6;
  const windows = [
    [x - reach, y - reach, x, y],
    [x, y - reach, x + reach, y],
    [x - reach, y, x, y + reach],
    [x, y, x + reach, y + reach],
  ].map((window) => statistics(pixels, ...window));
  return windows.reduce((best, other) => (other.variance < best.variance ? other : best)).mean;
}

/** Sharpened far too much: halos. */
function ringing(pixels, x, y) {
  const { mean } = statistics(pixels, x - 3, y - 3, x + 3, y + 3);
  return mean.map((value, channel) => value + 4 * (at(pixels, x, y, channel) - value));
}

/** The pattern that transposed convolutions leave. */
function checkerboard(pixels, x, y) {
  const step = (x + y) % 2 ? 18 : -18;
  return [0, 1, 2].map((channel) => at(pixels, x, y, channel) + step);
}

/** Squares of 8 px, each of one colour. */
function blocks(pixels, x, y) {
  const [left, top] = [x - (x % 8), y - (y % 8)];
  return statistics(pixels, left, top, left + 7, top + 7).mean;
}

/** Grain of standard deviation 35, the same at every visit. */
function noise(pixels, x, y) {
  return [0, 1, 2].map((channel) => {
    const bits = hashed(3 * (y * pixels.width + x) + channel);
    const sum = (bits & 255) + ((bits >>> 8) & 255) + ((bits >>> 16) & 255) + (bits >>> 24); // of four: nearly Gaussian
    return at(pixels, x, y, channel) + 35 * ((sum - 510) / 148);
  });
}

/** 32 well mixed bits of a number (the finaliser of MurmurHash3). */
function hashed(number) {
  let bits = number | 0;
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return (bits ^ (bits >>> 16)) >>> 0;
}
