/** The page: which pictures are on it, and what follows when they, the rung or a slider change. */

import { getFile, hasToken } from "./api.js";
import { copyOnClick } from "./clipboard.js";
import { curlCommand } from "./curl.js";
import { downloadButtons } from "./downloads.js";
import { byId, element } from "./elements.js";
import { listenForFiles } from "./intake.js";
import { clearProblem, say, showBusy, showProblem } from "./messages.js";
import { showModel, showNumbers } from "./numbers.js";
import { openPicture } from "./picture.js";
import { Planting } from "./planting.js";
import { regionList } from "./region_list.js";
import { findRegions } from "./regions.js";
import { isScored, optionsFor, scorePictures, servedModel } from "./scoring.js";
import { Viewer } from "./viewer.js";

const SAMPLE = "web/sample.jpg";
const MOST_REGIONS = 8; // in all; beyond it a list is no longer read

/**
 * All that the page knows. `viewers` has one for each of `pictures`, `scored` are the last ones that got their results,
 * `rung` is null until the server said what it serves, which it is asked while `starting`, `blind` are the rungs that take no LR
 * picture, `lr` is the LR picture and `scoredLr` the one that the last results were beside.
 */
const state = {
  pictures: [],
  viewers: [],
  scored: [],
  rung: null,
  starting: false,
  blind: new Set(),
  lr: null,
  scoredLr: null,
  running: null,
};

const planting = new Planting((spoilt) => {
  setPictures(spoilt ? [planting.original, spoilt] : [planting.original]);
});
const opacity = () => Number(byId("opacity").value) / 100;
const usedLr = () => (state.blind.has(state.rung) ? null : state.lr);
const threshold = () => Number(byId("threshold").value);

/** Another picture, or several: the first two are compared; a single one is compared to what is there. */
async function take(files) {
  clearProblem();
  const opened = await Promise.all(files.slice(0, 2).map((file) => openPicture(file)));
  if (planting.active) planting.end();
  setPictures([...state.pictures.slice(0, 2 - opened.length), ...opened]);
  if (files.length > 2) say(`The first two of ${files.length} pictures are compared.`);
}

function setPictures(pictures) {
  const before = state.viewers;
  state.pictures = pictures;
  state.viewers = pictures.map((picture, index) => {
    const viewer = new Viewer(pictures.length > 1 ? "AB"[index] : "", picture, {
      onInspect: (x, y) => inspect(viewer, x, y),
      onPick: (x, y) => planting.active && planting.plant(x, y),
      onRemove: () => {
        planting.end();
        setPictures(state.pictures.filter((other) => other !== picture));
      },
    });
    return viewer;
  });
  const focused = before.find((viewer) => viewer.element.contains(document.activeElement));
  byId("figures").replaceChildren(...state.viewers.map((viewer) => viewer.element));
  if (focused) keepFocus(focused);
  byId("figures").classList.toggle("two", pictures.length > 1);
  byId("welcome").hidden = pictures.length > 0;
  byId("work").hidden = pictures.length === 0;
  showWhetherToPlant();
  showResults();
  score();
}

/** Who works with the keyboard goes on in the newest picture, at the same place. */
function keepFocus(viewer) {
  const next = state.viewers.at(-1);
  next?.layers.focus({ preventScroll: true });
  if (next && viewer.at) inspect(next, ...viewer.at);
}

/** The cross moves in both pictures of one size. */
function inspect(viewer, x, y) {
  const same = (other) => String(other.picture.size) === String(viewer.picture.size);
  for (const other of state.viewers.filter(same)) other.inspect(x, y);
}

/** Ask the server about whatever has no result of the present rung; a newer call ends an older one. */
async function score() {
  state.running?.abort();
  const running = new AbortController();
  state.running = running;
  if (!state.pictures.length || state.rung === null) {
    showBusy(null);
    if (state.pictures.length) start(); // the server was away when the page began
    return;
  }
  showBusy("Scoring…");
  say("Scoring");
  try {
    await scorePictures(state.pictures, state.rung, usedLr(), running.signal, (seconds) =>
      showBusy(seconds ? `The server is busy; asking again in ${seconds} s` : "Scoring…"),
    );
    if (state.running === running) announce();
  } catch (error) {
    if (state.running === running) fail(error);
  }
  if (state.running === running) showBusy(null);
}

function announce() {
  state.scored = state.pictures;
  state.scoredLr = state.lr;
  showResults();
  const scores = state.pictures.map(({ name, result: { item } }) => `${name}: ${item.error ?? `score ${item.score.toFixed(3)}`}`);
  say(scores.join("; "));
}

/** Score beside a low-resolution picture, or without one again (null). */
function setLr(picture) {
  state.lr = picture;
  showLr();
  score();
}

function showLr() {
  const taken = !state.blind.has(state.rung);
  byId("choose-lr").hidden = !taken;
  byId("lr").hidden = !taken || state.lr === null;
  byId("lr-name").textContent = state.lr?.name ?? "";
  showCurl();
}

/** A picture that the server does not take leaves the page to those that were there before; the sentence stays. */
function fail(error) {
  const failed = state.pictures.filter((picture) => picture.result === null);
  if (error.status >= 400 && error.status < 500 && state.lr && state.lr !== state.scoredLr) {
    const { name } = state.lr;
    setLr(state.scoredLr);
    showProblem({ title: `${name} was not taken as LR picture`, detail: `${error.title}: ${error.detail}` });
  } else if (error.status >= 400 && error.status < 500 && failed.length && state.pictures !== state.scored) {
    const names = failed.map((picture) => picture.name).join(" and ");
    setPictures(state.scored);
    showProblem({ title: `${names} was not scored`, detail: `${error.title}: ${error.detail}` });
  } else {
    showFailure(error, score);
  }
}

/** Why something did not come to pass; `again` is what is tried anew. */
function showFailure(error, again) {
  showProblem({ title: error.title ?? "The page failed", detail: error.detail ?? error.message }, () => {
    clearProblem();
    again();
  });
}

function showResults() {
  const { pictures, viewers } = state;
  const current = pictures.map((picture) => (isScored(picture, state.rung, usedLr()) ? picture.result : null));
  viewers.forEach((viewer, index) => {
    viewer.showMap(current[index]?.map ?? null);
    if (planting.active) viewer.showPlaces(planting.defects);
  });
  showNumbers(pictures);
  showModel(pictures.at(-1)?.result ?? null);
  if (planting.active && pictures.length === 2) planting.judge(...current);
  byId("rung-note").textContent = current.some((result) => result && !result.map && !result.item.error)
    ? "This rung has no map: it gives one number for the whole picture."
    : "";
  showRegions();
  showOverlay();
  showDownloads();
}

function showRegions() {
  byId("threshold-value").textContent = threshold().toFixed(2);
  byId("regions").replaceChildren();
  state.viewers.forEach((viewer, index) => {
    if (!viewer.map) {
      viewer.showRegions([]);
      return;
    }
    const regions = findRegions(viewer.map, threshold());
    const shown = regions.slice(0, MOST_REGIONS / state.viewers.length);
    viewer.showRegions(shown);
    if (state.viewers.length > 1) byId("regions").append(element("h3", {}, `In ${"AB"[index]}`));
    byId("regions").append(regionList(viewer.picture, shown, regions.length, (chosen) => viewer.emphasise(chosen)));
  });
  showCurl();
}

function showOverlay() {
  byId("opacity-value").textContent = `${byId("opacity").value} %`;
  for (const viewer of state.viewers) viewer.setOpacity(opacity());
}

function showDownloads() {
  const withMaps = state.viewers.filter((viewer) => viewer.map);
  byId("downloads").replaceChildren(
    ...withMaps.flatMap(({ picture }) => downloadButtons(picture, state.pictures.length > 1 ? "AB"[state.pictures.indexOf(picture)] : "", opacity)),
  );
}

function showCurl() {
  if (!state.pictures.length || state.rung === null) return;
  const options = { ...optionsFor(state.pictures[0], state.rung), region_threshold: threshold() };
  byId("curl").textContent = curlCommand(state.pictures, usedLr(), options, hasToken());
}

function showRungs(model) {
  const choices = model.rungs.map((rung) => {
    const input = element("input", { type: "radio", name: "rung", value: rung.name, checked: rung.name === state.rung });
    input.addEventListener("change", () => {
      state.rung = rung.name;
      showLr();
      score();
    });
    return element("label", { title: `${rung.has_map ? "" : "No map. "}${rung.digest}` }, input, element("span", {}, rung.name));
  });
  byId("rungs").replaceChildren(element("legend", {}, "Rung"), ...choices);
}

async function start() {
  if (state.starting) return;
  state.starting = true;
  try {
    const model = await servedModel();
    state.rung = model.rung;
    state.blind = new Set(model.rungs.filter((rung) => !rung.takes_lr).map((rung) => rung.name));
    showRungs(model);
    showLr();
    showResults();
    score();
  } catch (error) {
    showFailure(error, start);
  } finally {
    state.starting = false;
  }
}

/** The sample photo, and what is done with it `then`. */
async function takeSample(then = () => {}) {
  clearProblem();
  try {
    setPictures([await openPicture(await getFile(SAMPLE), "sample.jpg")]);
    then();
  } catch (error) {
    showFailure(error, () => takeSample(then));
  }
}

/** In a copy of the first picture. */
function beginPlanting() {
  planting.begin(state.pictures[0]);
  setPictures([state.pictures[0]]);
  state.viewers[0].layers.focus({ preventScroll: true });
}

/** A picture without pixels on this screen cannot be changed on it either. */
function showWhetherToPlant() {
  const [first] = state.pictures;
  const unseen = first !== undefined && first.canvas === null;
  byId("plant").disabled = unseen;
  byId("plant-note").textContent = unseen ? `This browser cannot show ${first.name}, so no defect can be planted in it.` : "";
}

listenForFiles(take);
byId("sample").addEventListener("click", () => takeSample());
byId("opacity").addEventListener("input", showOverlay);
byId("threshold").addEventListener("input", showRegions);
byId("dismiss").addEventListener("click", clearProblem);
byId("start-over").addEventListener("click", () => {
  planting.end();
  clearProblem();
  state.scored = [];
  state.lr = state.scoredLr = null;
  showLr();
  setPictures([]);
});
byId("choose-lr").addEventListener("click", () => byId("lr-file").click());
byId("lr-file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  clearProblem();
  setLr({ name: file.name, blob: file });
  target.value = ""; // the same file may be chosen again
});
byId("remove-lr").addEventListener("click", () => setLr(null));
byId("plant").addEventListener("click", () => (planting.active ? planting.end() : beginPlanting()));
byId("sample-plant").addEventListener("click", () => takeSample(beginPlanting));
byId("end-planting").addEventListener("click", () => planting.end());
copyOnClick(byId("copy-digest"), byId("digest"), () => state.pictures.at(-1).result.model.digest);
copyOnClick(byId("copy-curl"), byId("curl"));
start();
