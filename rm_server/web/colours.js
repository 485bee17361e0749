/** The colour scale of `finpercep/heatmap.py` (inferno, a polynomial of degree 6; Matt Zucker, CC0), and its overlay. */

const INFERNO = [
  [0.0002189403691192265, 0.001651004631001012, -0.01948089843709184],
  [0.1065134194856116, 0.5639564367884091, 3.932712388889277],
  [11.60249308247187, -3.972853965665698, -15.9423941062914],
  [-41.70399613139459, 17.43639888205313, 44.35414519872813],
  [77.162935699427, -33.40235894210092, -81.80730925738993],
  [-71.31942824499214, 32.62606426397723, 73.20951985803202],
  [25.13112622477341, -12.24266895238567, -23.07032500287172],
];

/** 256 colours [r, g, b], 0 … 255: black at degradation 0, through purple and orange to pale yellow at 1. */
export const COLOURS = Array.from({ length: 256 }, (_, step) => [0, 1, 2].map((channel) => colourAt(step / 255, channel)));

function colourAt(t, channel) {
  const value = INFERNO.reduceRight((sum, row) => sum * t + row[channel], 0);
  return Math.round(255 * Math.min(1, Math.max(0, value)));
}

/**
 * A map as a layer to lay over its picture: its colours, the more opaque the more degraded. The share grows with the square
 * root, so that a clean picture stays readable and a faint defect is still seen.
 * @returns {ImageData} of the map's size
 */
export function heatLayer(map) {
  const layer = new ImageData(map.width, map.height);
  map.values.forEach((degradation, i) => {
    layer.data.set(COLOURS[Math.round(255 * degradation)], 4 * i);
    layer.data[4 * i + 3] = Math.round(255 * Math.sqrt(degradation));
  });
  return layer;
}

/** How grey the picture under a layer becomes, so that only the layer's colours remain: wholly from `opacity` 0.75 on. */
export function greyness(opacity) {
  return Math.min(1, opacity / 0.75);
}
