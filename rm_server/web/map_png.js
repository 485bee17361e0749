/**
 * A degradation map out of the server's PNG of 16-bit grey. A canvas would round it to 8 bits, hence this small decoder;
 * it reads what the server writes (16-bit grey, not interlaced) and nothing else.
 */

/** A map: `values` in [0, 1], row by row, 1 = degraded; `file` is the PNG as it came. */
export class DegradationMap {
  constructor(width, height, values, file = null) {
    Object.assign(this, { width, height, values, file });
  }

  at(x, y) {
    return this.values[y * this.width + x];
  }
}

/** Base64 of a 16-bit grey PNG → `DegradationMap`. */
export async function decodeMap(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const { header, data } = chunksOf(bytes);
  const [width, height] = [header.getUint32(0), header.getUint32(4)];
  const [depth, colour, interlace] = [header.getUint8(8), header.getUint8(9), header.getUint8(12)];
  if (depth !== 16 || colour !== 0 || interlace !== 0) throw new Error("the map is not a PNG of 16-bit grey");
  const samples = unfiltered(await inflated(data), width, height);
  const values = new Float32Array(width * height);
  for (let i = 0; i < values.length; i++) values[i] = (samples[2 * i] * 256 + samples[2 * i + 1]) / 65535;
  return new DegradationMap(width, height, values, new Blob([bytes], { type: "image/png" }));
}

/** The header, and the compressed data of all IDAT chunks. */
function chunksOf(bytes) {
  const view = new DataView(bytes.buffer);
  let header = null;
  const data = [];
  for (let start = 8; start < bytes.length; ) {
    const length = view.getUint32(start);
    const kind = String.fromCharCode(...bytes.subarray(start + 4, start + 8));
    if (kind === "IHDR") header = new DataView(bytes.buffer, start + 8, length);
    if (kind === "IDAT") data.push(bytes.subarray(start + 8, start + 8 + length));
    start += length + 12;
  }
  if (header === null) throw new Error("the map is not a PNG");
  return { header, data };
}

async function inflated(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Undo the filter of each row (PNG specification, 9.2): a sample is told as its difference to its neighbours. */
function unfiltered(rows, width, height) {
  const stride = 2 * width;
  const out = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (stride + 1)];
    const from = y * (stride + 1) + 1;
    const to = y * stride;
    for (let i = 0; i < stride; i++) {
      const left = i >= 2 ? out[to + i - 2] : 0;
      const up = y > 0 ? out[to + i - stride] : 0;
      const corner = i >= 2 && y > 0 ? out[to + i - stride - 2] : 0;
      out[to + i] = rows[from + i] + predicted(filter, left, up, corner);
    }
  }
  return out;
}

function predicted(filter, left, up, corner) {
  if (filter === 0) return 0;
  if (filter === 1) return left;
  if (filter === 2) return up;
  if (filter === 3) return (left + up) >> 1;
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}
