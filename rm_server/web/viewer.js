/** One picture on the screen: its pixels, the map over them, marks, and a cross that reads the map. Knows no server. */

import { greyness, heatLayer } from "./colours.js";
import { byId } from "./elements.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const INVITATION = "Point at the picture, or use the arrow keys, to read the map.";
const STEPS = 64; // an arrow key goes so often from side to side; with Shift, a pixel at a time

export class Viewer {
  /**
   * @param {string} letter A or B
   * @param {import("./picture.js").Picture} picture
   * @param {{onInspect: (x: number, y: number) => void, onPick: (x: number, y: number) => void, onRemove: () => void}} told
   */
  constructor(letter, picture, told) {
    this.element = byId("figure").content.firstElementChild.cloneNode(true);
    this.picture = picture;
    this.map = null;
    this.told = told;
    const find = (name) => this.element.querySelector(`.${name}`);
    [this.layers, this.base, this.heat, this.marks, this.cross, this.readout] = [
      "layers", "picture", "heat", "marks", "cross", "readout",
    ].map(find);
    find("letter").textContent = letter;
    find("name").textContent = picture.name;
    find("remove").setAttribute("aria-label", `Remove ${picture.name}`);
    find("remove").addEventListener("click", told.onRemove);
    this.readout.textContent = INVITATION;
    this.#draw();
    this.#listen();
  }

  /** Lay a map over the picture, or take it away (null). */
  showMap(map) {
    this.map = map;
    this.heat.hidden = map === null;
    if (map === null) return;
    if (this.picture.canvas === null) this.#draw();
    Object.assign(this.heat, { width: map.width, height: map.height });
    this.heat.getContext("2d").putImageData(heatLayer(map), 0, 0);
    if (this.at) this.inspect(...this.at);
  }

  /** Opacity of the map, 0 … 1; at 0 the picture is as it was, without marks. */
  setOpacity(opacity) {
    this.marks.hidden = opacity === 0;
    this.layers.style.setProperty("--opacity", opacity);
    this.layers.style.setProperty("--greyness", this.map ? greyness(opacity) : 0);
  }

  /** Numbered boxes, in px of the map. */
  showRegions(regions) {
    this.marks.replaceChildren(
      ...regions.map(({ box: [x0, y0, x1, y1] }, index) => {
        const mark = this.#mark("region", x0 / this.map.width, y0 / this.map.height, x1 / this.map.width, y1 / this.map.height);
        mark.textContent = index + 1;
        return mark;
      }),
      ...this.marks.querySelectorAll(".place"),
    );
  }

  /** Make one region's box stand out; -1 for none. */
  emphasise(index) {
    this.marks.querySelectorAll(".region").forEach((mark, i) => mark.classList.toggle("chosen", i === index));
  }

  /** Dashed circles where defects were planted. */
  showPlaces(defects) {
    for (const old of this.marks.querySelectorAll(".place")) old.remove();
    const [width, height] = this.picture.size ?? [1, 1];
    for (const { x, y, radius } of defects) {
      this.marks.append(
        this.#mark("place", (x - radius) / width, (y - radius) / height, (x + radius) / width, (y + radius) / height),
      );
    }
  }

  /** Put the cross on a pixel of the picture and read the map there. */
  inspect(x, y) {
    const size = this.picture.size;
    if (size === null) return;
    const [width, height] = size;
    this.at = [clamped(x, width), clamped(y, height)];
    [x, y] = this.at;
    this.cross.hidden = false;
    this.cross.style.left = `${(100 * (x + 0.5)) / width}%`;
    this.cross.style.top = `${(100 * (y + 0.5)) / height}%`;
    const value = this.map?.at(Math.floor((x * this.map.width) / width), Math.floor((y * this.map.height) / height));
    this.readout.textContent = `x ${x}, y ${y}${value === undefined ? "" : ` · degradation ${value.toFixed(3)}`}`;
  }

  /** Take the cross away. */
  leave() {
    this.at = null;
    this.cross.hidden = true;
    this.readout.textContent = INVITATION;
  }

  #draw() {
    const size = this.picture.size;
    this.element.classList.toggle("unseen", this.picture.canvas === null);
    if (size === null) return;
    const [width, height] = size;
    this.layers.style.setProperty("--width", width);
    this.layers.style.setProperty("--height", height);
    this.element.querySelector(".size").textContent = `${width} × ${height} px`;
    this.layers.setAttribute(
      "aria-label",
      `${this.picture.name}, ${width} by ${height} pixels. Arrow keys move a cross that reads the map, with Shift a pixel at a time.`,
    );
    Object.assign(this.base, { width, height });
    if (this.picture.canvas) this.base.getContext("2d").drawImage(this.picture.canvas, 0, 0);
  }

  #listen() {
    const point = (event) => {
      const frame = this.layers.getBoundingClientRect();
      const [width, height] = this.picture.size ?? [0, 0];
      const [x, y] = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
      return [clamped(Math.floor(x * width), width), clamped(Math.floor(y * height), height)];
    };
    this.layers.addEventListener("pointermove", (event) => this.told.onInspect(...point(event)));
    this.layers.addEventListener("click", (event) => {
      this.told.onInspect(...point(event));
      this.told.onPick(...point(event));
    });
    this.layers.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const [width, height] = this.picture.size ?? [0, 0];
    const [x, y] = this.at ?? [Math.floor(width / 2), Math.floor(height / 2)];
    if (event.key in ARROWS) {
      const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / STEPS));
      const [right, down] = ARROWS[event.key];
      this.told.onInspect(clamped(x + step * right, width), clamped(y + step * down, height));
    } else if (event.key === "Enter" || event.key === " ") {
      this.told.onInspect(x, y);
      this.told.onPick(x, y);
    } else if (event.key === "Escape") {
      this.leave();
    } else {
      return;
    }
    event.preventDefault();
  }

  #mark(kind, left, top, right, bottom) {
    const mark = document.createElement("span");
    mark.className = kind;
    Object.assign(mark.style, {
      left: `${100 * left}%`,
      top: `${100 * top}%`,
      width: `${100 * (right - left)}%`,
      height: `${100 * (bottom - top)}%`,
    });
    return mark;
  }
}

function clamped(value, length) {
  return Math.min(length - 1, Math.max(0, value));
}
