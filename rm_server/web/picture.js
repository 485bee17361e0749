/** A picture as the page holds it: the bytes that are scored, and its pixels for the screen where the browser can show them. */

export class Picture {
  /**
   * @param {string} name
   * @param {Blob} blob what is sent, unchanged
   * @param {HTMLCanvasElement | null} canvas its pixels, upright, on white; null when the browser cannot read it
   */
  constructor(name, blob, canvas) {
    Object.assign(this, { name, blob, canvas });
    /** What a rung said of it: {model, lr, timing, elapsed, item, map}; null before. */
    this.result = null;
  }

  /** [width, height] in px; of its map when the browser cannot show it; null when nothing is known. */
  get size() {
    if (this.canvas) return [this.canvas.width, this.canvas.height];
    const map = this.result?.map;
    return map ? [map.width, map.height] : null;
  }
}

/** A file → `Picture`. A file the browser cannot read is still one: whether it can be scored is for the server to say. */
export async function openPicture(file, name = file.name || "pasted picture") {
  try {
    const bitmap = await createImageBitmap(file);
    const canvas = blankCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    return new Picture(name, file, canvas);
  } catch {
    return new Picture(name, file, null);
  }
}

/** Pixels → `Picture`, losslessly. */
export async function pictureOf(pixels, name) {
  const canvas = blankCanvas(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return new Picture(name, blob, canvas);
}

/** Where a picture is transparent the server puts it on white, and so does the page. */
function blankCanvas(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  return canvas;
}
