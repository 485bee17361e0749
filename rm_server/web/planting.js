/** The plant-a-defect demo: faults put into a copy of a picture, and whether the map finds them. */

import { inside, KINDS, planted } from "./defects.js";
import { byId, element } from "./elements.js";
import { pictureOf } from "./picture.js";

export class Planting {
  /** @param {(spoilt: import("./picture.js").Picture | null) => void} changed told the spoilt copy; null when nothing is left in it */
  constructor(changed) {
    this.changed = changed;
    this.original = null;
    this.defects = [];
    byId("defect-kind").append(...Object.entries(KINDS).map(([value, { name }]) => element("option", { value }, name)));
    byId("undo-defect").addEventListener("click", () => this.#become(this.defects.slice(0, -1)));
  }

  /** Whether a click plants. */
  get active() {
    return this.original !== null;
  }

  /** Begin with a picture that the browser can show. */
  begin(picture) {
    this.original = picture;
    this.defects = [];
    this.#show();
  }

  /** Stop planting; what was planted stays. */
  end() {
    this.original = null;
    this.#show();
  }

  /** Plant a defect of the chosen kind and size around a pixel. */
  plant(x, y) {
    const [width, height] = this.original.size;
    const radius = Math.max(12, (Number(byId("defect-size").value) / 100) * Math.min(width, height));
    return this.#become([...this.defects, { kind: byId("defect-kind").value, x, y, radius }]);
  }

  /** Say whether the map has found it. */
  judge(before, after) {
    const found = before?.map && after?.map && this.defects.length;
    byId("verdict").replaceChildren(...(found ? sentence(this.defects, this.original.size, before, after) : []));
  }

  async #become(defects) {
    this.defects = defects;
    this.#show();
    if (!defects.length) {
      this.changed(null);
      return;
    }
    const { canvas, name } = this.original;
    const clean = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const spoilt = await pictureOf(defects.reduce(planted, clean), `${name.replace(/\.\w+$/, "")} + defect.png`);
    if (this.active && this.defects === defects) this.changed(spoilt); // else another was planted meanwhile, or none is wanted
  }

  #show() {
    byId("planting").hidden = !this.active;
    byId("plant").setAttribute("aria-pressed", this.active);
    byId("undo-defect").disabled = !this.defects.length;
    byId("verdict").textContent = "";
  }
}

/** Mean of a map over the planted places; picture and map may differ in size. */
export function meanInside(map, defects, [width, height]) {
  const [sx, sy] = [map.width / width, map.height / height];
  const places = new Set();
  for (const { x, y, radius } of defects) {
    const scaled = { x: x * sx, y: y * sy, radius: Math.max(1, radius * sx) };
    for (const [u, v] of inside(scaled, map.width, map.height)) places.add(v * map.width + u);
  }
  let sum = 0;
  for (const place of places) sum += map.values[place];
  return sum / places.size;
}

function sentence(defects, size, before, after) {
  const [was, is] = [before, after].map((result) => meanInside(result.map, defects, size));
  const found = is - was > 0.1 ? "Found" : is - was > 0.02 ? "Hinted at" : "Missed";
  const [first, second] = [before.item.score, after.item.score];
  const moved = second < first ? "fell" : "rose";
  const map = `In the planted place the map went from ${was.toFixed(2)} to ${is.toFixed(2)}`;
  const score = `the score ${moved} from ${first.toFixed(3)} to ${second.toFixed(3)}`;
  return [element("b", {}, `${found}.`), ` ${map}; ${score}.`];
}
