/** What may be taken away: the map as the server sent it, and the overlay as it is on the screen. */

import { greyness, heatLayer } from "./colours.js";
import { element } from "./elements.js";

/** Buttons for a picture with a map. */
export function downloadButtons(picture, letter, opacity) {
  const stem = picture.name.replace(/\.\w+$/, "");
  const button = (text, name, file) => {
    const made = element("button", { type: "button" }, `${text}${letter && ` ${letter}`}`);
    made.addEventListener("click", async () => save(await file(), name));
    return made;
  };
  return [
    button("Map, 16-bit PNG", `${stem}.map.png`, () => picture.result.map.file),
    button("Overlay, PNG", `${stem}.overlay.png`, () => overlayFile(picture, opacity())),
  ];
}

/** The overlay at the picture's size. */
export function overlayFile(picture, opacity) {
  const { map } = picture.result;
  const layer = element("canvas", { width: map.width, height: map.height });
  layer.getContext("2d").putImageData(heatLayer(map), 0, 0);
  const [width, height] = picture.size;
  const canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d");
  if (picture.canvas) {
    context.filter = `grayscale(${greyness(opacity)})`;
    context.drawImage(picture.canvas, 0, 0);
    context.filter = "none";
  }
  context.globalAlpha = opacity;
  context.drawImage(layer, 0, 0, width, height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
