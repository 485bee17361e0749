/** The numbers of one picture or two, and what they come to in words. */

import { byId, element } from "./elements.js";

/** Scores of pictures side by side; of two, their difference. */
export function showNumbers(pictures) {
  byId("scores").replaceChildren(...pictures.map((picture, index) => card(picture, pictures.length > 1 ? "AB"[index] : "")));
  const scores = pictures.map((picture) => picture.result?.item.score ?? null);
  const both = scores.length === 2 && scores.every((score) => score !== null);
  byId("difference").hidden = !both;
  if (both) byId("difference").replaceChildren(...difference(...scores));
}

/** Which model answered, and where the time went. */
export function showModel(result) {
  byId("model").hidden = result === null;
  byId("timing").textContent = "";
  if (result === null) return;
  byId("model-name").textContent = `${result.model.name} · ${result.model.rung}`;
  byId("digest").textContent = shortDigest(result.model.digest);
  const { compute_ms: compute, queue_ms: queue, batch_ms: codec } = result.timing;
  byId("timing").textContent =
    `${seconds(result.elapsed)} in all: model ${seconds(compute)}, waiting ${seconds(queue)}, decoding and encoding ${seconds(codec)}`;
}

/** The first digits of a digest, without the name of its algorithm. */
export function shortDigest(digest) {
  return digest.slice(digest.indexOf(":") + 1).slice(0, 10);
}

function card(picture, letter) {
  const item = picture.result?.item;
  if (item?.error) return element("div", { class: "card" }, heading(letter, "–"), element("p", { class: "fault" }, item.error));
  const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
  return element(
    "div",
    { class: "card" },
    heading(letter, number(item?.score)),
    bar(item?.score ?? 0),
    element(
      "dl",
      {},
      ...pair("worst places", number(item?.max_degradation), "Mean of the most degraded share of pixels"),
      ...pair("map mean", number(item?.mean_degradation), "0 is clean, 1 is degraded"),
    ),
  );
}

/** The score as a length; the number beside it says the same, so it is not read out. */
function bar(share) {
  const filled = element("i");
  filled.style.width = `${100 * share}%`;
  return element("div", { class: "bar" }, filled);
}

function heading(letter, text) {
  return element("p", { class: "score" }, element("b", { class: "letter" }, letter), element("span", { class: "number" }, text));
}

function pair(name, value, title) {
  return [element("dt", { title }, name), element("dd", {}, value)];
}

function difference(first, second) {
  const step = second - first;
  const words = Math.abs(step) < 0.0005 ? "as good as A" : step > 0 ? "better than A" : "worse than A";
  const sign = step > 0 ? "+" : step < 0 ? "−" : "±";
  return [element("b", {}, `${sign}${Math.abs(step).toFixed(3)}`), ` B is ${words}`];
}

function seconds(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}
