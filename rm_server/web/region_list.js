/** The list of degraded regions of a picture, each with its place zoomed. */

import { element } from "./elements.js";

const ZOOM = 84; // px of a zoomed place's side
const MARGIN = 1.5; // how much wider a zoomed place is than its region

/**
 * @param {import("./picture.js").Picture} picture with a map
 * @param {ReturnType<import("./regions.js").findRegions>} regions to list, worst first, in px of the map
 * @param {number} count how many were found
 * @param {(index: number) => void} emphasise told which region is pointed at; -1 for none
 * @returns {HTMLElement}
 */
export function regionList(picture, regions, count, emphasise) {
  if (!regions.length) return element("p", { class: "hint" }, "None at this threshold.");
  const list = element("ol", { class: "regions" });
  regions.forEach((region, index) => list.append(entry(picture, region, index, emphasise)));
  const more = count - regions.length;
  return more > 0 ? element("div", {}, list, element("p", { class: "hint" }, `and ${more} smaller`)) : list;
}

function entry(picture, region, index, emphasise) {
  const [x0, y0, x1, y1] = region.box;
  const scale = picture.size[0] / picture.result.map.width;
  const pixels = (value) => Math.round(value * scale).toLocaleString("en");
  const button = element(
    "button",
    { type: "button", class: "region-button" },
    zoomed(picture, region.box, scale),
    element(
      "span",
      { class: "region-text" },
      element("b", {}, `${index + 1}`),
      ` ${pixels(x1 - x0)} × ${pixels(y1 - y0)} px at ${pixels(x0)}, ${pixels(y0)}`,
      element("small", {}, `area ${Math.round(region.area * scale * scale).toLocaleString("en")} px`),
      element("small", {}, `mean ${region.mean.toFixed(2)} · peak ${region.peak.toFixed(2)}`),
    ),
  );
  for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => emphasise(index));
  for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => emphasise(-1));
  return element("li", {}, button);
}

/** The place of a box, with some of what is around it, as a small square picture. */
function zoomed(picture, [x0, y0, x1, y1], scale) {
  const density = Math.min(3, Math.ceil(devicePixelRatio));
  const canvas = element("canvas", { width: ZOOM * density, height: ZOOM * density });
  canvas.setAttribute("aria-hidden", "true");
  if (picture.canvas === null) return canvas;
  const [width, height] = picture.size;
  const side = Math.min(width, height, Math.max(24, MARGIN * scale * Math.max(x1 - x0, y1 - y0)));
  const left = Math.min(width - side, Math.max(0, (scale * (x0 + x1) - side) / 2));
  const top = Math.min(height - side, Math.max(0, (scale * (y0 + y1) - side) / 2));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = side > ZOOM; // enlarged pixels stay pixels
  context.drawImage(picture.canvas, left, top, side, side, 0, 0, canvas.width, canvas.height);
  return canvas;
}
