/** Where a map is bad: the connected regions of `finpercep/regions.py`, found here so that the threshold's slider answers at once. */

export const MIN_AREA = 16;

/**
 * Connected regions (8 neighbours) where the map is at least `threshold`, the largest total degradation first.
 * @returns {{box: [number, number, number, number], area: number, mean: number, peak: number}[]} box: x0, y0, x1, y1, exclusive
 */
export function findRegions(map, threshold, minArea = MIN_AREA) {
  const seen = new Uint8Array(map.values.length);
  const found = [];
  for (let start = 0; start < seen.length; start++) {
    if (!seen[start] && map.values[start] >= threshold) found.push(flood(map, threshold, seen, start));
  }
  return found
    .filter((region) => region.area >= minArea)
    .sort((one, other) => other.total - one.total)
    .map(({ box, area, total, peak }) => ({ box, area, mean: Math.min(total / area, peak), peak }));
}

/** The region around a pixel; marks it as seen. */
function flood(map, threshold, seen, start) {
  const { width, height, values } = map;
  const box = [width, height, 0, 0];
  let [area, total, peak] = [0, 0, 0];
  const waiting = [start];
  seen[start] = 1;
  while (waiting.length) {
    const i = waiting.pop();
    const [x, y] = [i % width, Math.floor(i / width)];
    area += 1;
    total += values[i];
    peak = Math.max(peak, values[i]);
    grow(box, x, y);
    for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
      for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
        const j = v * width + u;
        if (seen[j] || values[j] < threshold) continue;
        seen[j] = 1;
        waiting.push(j);
      }
    }
  }
  return { box, area, total, peak };
}

function grow(box, x, y) {
  box[0] = Math.min(box[0], x);
  box[1] = Math.min(box[1], y);
  box[2] = Math.max(box[2], x + 1);
  box[3] = Math.max(box[3], y + 1);
}
