"use strict";
// Makes a report's drawings answer: values under the pointer, and pictures laid over each other. The page reads without it.

const SVG = "http://www.w3.org/2000/svg";

const element = (tag, className, text = "") => {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
};

// --- charts ---

class Pointer {
  // The values of all lines at one x, beside a vertical line. Moved by the mouse, a finger or the arrow keys.
  constructor(figure) {
    this.figure = figure;
    this.data = JSON.parse(figure.querySelector("script").textContent);
    this.plot = figure.querySelector(".plot");
    this.svg = this.plot.querySelector("svg");
    this.at = null;
    this.line = document.createElementNS(SVG, "line");
    this.line.setAttribute("class", "pointer");
    this.tip = element("div", "tip");
    this.tip.setAttribute("role", "status");
    this.tip.hidden = true;
    this.plot.append(this.tip);
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "group");
    this.plot.setAttribute("aria-label", `${figure.querySelector("h3").textContent}: values by the arrow keys`);
    for (const name of ["pointermove", "pointerdown"]) this.plot.addEventListener(name, (event) => this.point(event));
    // A finger that is lifted leaves too: its values stay until something else is touched.
    this.plot.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && this.hide());
    this.plot.addEventListener("blur", () => this.hide());
    this.plot.addEventListener("keydown", (event) => this.key(event));
    figure.addEventListener("change", () => this.at !== null && this.show(this.at));
  }

  // The lines that are switched on, one a colour: its values as they are, not their average.
  lines() {
    const off = new Set([...this.figure.querySelectorAll(".legend input:not(:checked)")].map((box) => Number(box.dataset.k)));
    const found = new Map();
    for (const line of this.data.lines) {
      if (off.has(line.colour)) continue;
      const before = found.get(line.colour);
      found.set(line.colour, before ? { ...before, name: before.name || line.name } : line);
    }
    return [...found.values()];
  }

  places() {
    return [...new Set(this.lines().flatMap((line) => line.x))].sort((a, b) => a - b);
  }

  point(event) {
    const [left, , right] = this.data.plot;
    const box = this.svg.getBoundingClientRect();
    const across = ((event.clientX - box.left) / box.width) * this.svg.viewBox.baseVal.width;
    const [low, high] = this.data.x;
    const x = low + ((across - left) / (right - left)) * (high - low);
    const places = this.places();
    if (places.length) this.show(places.reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best)));
  }

  key(event) {
    const places = this.places();
    const now = places.indexOf(this.at);
    const next = { ArrowRight: now + 1, ArrowLeft: now < 0 ? places.length - 1 : now - 1, Home: 0, End: places.length - 1 }[event.key];
    if (event.key === "Escape") this.hide();
    if (next === undefined || !places.length) return;
    event.preventDefault();
    this.show(places[Math.min(places.length - 1, Math.max(0, next))]);
  }

  show(x) {
    this.at = x;
    const [left, top, right, bottom] = this.data.plot;
    const [low, high] = this.data.x;
    const across = left + ((x - low) / (high - low)) * (right - left);
    for (const [name, value] of Object.entries({ x1: across, x2: across, y1: top, y2: bottom })) this.line.setAttribute(name, value);
    this.svg.append(this.line);
    const stretch = this.data.stretches.find(([start, end]) => start <= x && x <= end);
    this.tip.replaceChildren(element("b", "", `${this.data.xLabel} ${x}${stretch ? ` · ${stretch[2]}` : ""}`));
    for (const line of this.lines()) this.row(line.name, line.colour, line.y[line.x.indexOf(x)]);
    for (const band of this.data.bands) {
      const index = band.x.indexOf(x);
      if (index >= 0) this.row(band.name, 0, `${band.low[index]} … ${band.high[index]}`);
    }
    for (const mark of this.data.marks.filter((one) => one.x === x)) this.tip.append(element("em", mark.kind, mark.label));
    this.tip.hidden = false;
    const place = (across / this.svg.viewBox.baseVal.width) * this.plot.clientWidth;
    const width = this.tip.offsetWidth;
    const beside = place + 12 + width <= this.plot.clientWidth ? place + 12 : place - 12 - width;
    this.tip.style.left = `${Math.min(Math.max(0, beside), Math.max(0, this.plot.clientWidth - width))}px`;
  }

  row(name, colour, value) {
    if (value === undefined || value === null) return;
    const row = element("div", `c${colour}`);
    row.append(element("i", ""), name || "value", element("span", "", String(value)));
    this.tip.append(row);
  }

  hide() {
    this.at = null;
    this.tip.hidden = true;
    this.line.remove();
  }
}

// --- before and after ---

class Comparison {
  // Two of several pictures of one place: the left one up to the cut, the right one beyond it.
  constructor(article) {
    this.article = article;
    this.stage = article.querySelector(".layers");
    this.layers = new Map([...article.querySelectorAll(".layer")].map((layer) => [layer.dataset.name, layer]));
    const title = article.querySelector("h3").textContent;
    this.sides = ["left", "right"].map((side) => this.choice(side, title));
    this.range = element("input", "");
    Object.assign(this.range, { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
    this.range.setAttribute("aria-label", `${title}: where the left picture ends, in percent`);
    this.range.addEventListener("input", () => this.cut());
    const controls = element("div", "controls");
    controls.append(this.range, ...this.sides);
    this.stage.after(controls);
    this.stage.append(element("div", "cut"));
    this.stage.addEventListener("pointerdown", (event) => this.drag(event));
    this.stage.addEventListener("pointermove", (event) => event.buttons && this.drag(event));
    this.stage.addEventListener("dragstart", (event) => event.preventDefault());
    const largest = [...article.querySelectorAll("img")].reduce((a, b) => (b.naturalWidth > a.naturalWidth ? b : a));
    if (largest.naturalWidth) article.style.setProperty("--shape", `${largest.naturalWidth} / ${largest.naturalHeight}`);
    article.classList.add("live");
    this.choose();
    this.cut();
  }

  choice(side, title) {
    const select = element("select", side);
    select.setAttribute("aria-label", `${title}: ${side} picture`);
    for (const name of this.layers.keys()) select.append(new Option(name, name, false, name === this.article.dataset[side]));
    select.addEventListener("change", () => this.choose());
    return select;
  }

  choose() {
    for (const [name, layer] of this.layers) {
      this.sides.forEach((select) => layer.classList.toggle(select.className, select.value === name));
    }
  }

  cut() {
    this.article.style.setProperty("--cut", `${this.range.value}%`);
  }

  drag(event) {
    const box = this.stage.getBoundingClientRect();
    this.range.value = ((event.clientX - box.left) / box.width) * 100;
    this.cut();
  }
}

for (const figure of document.querySelectorAll(".chart")) new Pointer(figure);
const compare = () => {
  for (const article of document.querySelectorAll(".compare")) new Comparison(article);
};
if (document.readyState === "complete") compare();
else window.addEventListener("load", compare);
