/** Pictures → results, through waits for room and for the token. */

import { getModel, Problem, score } from "./api.js";
import { decodeMap } from "./map_png.js";
import { askForToken } from "./messages.js";

const MAP_SIDE = 2048; // px; maps of larger pictures come smaller, by means, so that phones can hold them
const PATIENCE = 5; // how often a busy server is asked again

/** The options that a picture is scored with. */
export function optionsFor(picture, rung) {
  const large = picture.canvas && Math.max(...picture.size) > MAP_SIDE;
  return { rung, map: "png", ...(large && { map_size: `${MAP_SIDE}` }) };
}

/** What is served, once there is a token for it where one is needed. */
export async function servedModel() {
  return withToken(getModel);
}

/** Whether a picture has been scored by this rung, beside this LR picture or without one. */
export function isScored({ result }, rung, lr) {
  return result !== null && result.model.rung === rung && result.lr === lr;
}

/**
 * Score pictures that have no result of this rung and LR picture and give them one. Pictures of like options go in one request.
 * @param {import("./picture.js").Picture[]} pictures
 * @param {string} rung
 * @param {{name: string, blob: Blob} | null} lr the low-resolution picture that all of them were made from
 * @param {AbortSignal} signal
 * @param {(seconds: number) => void} waiting told, each second, how long a busy server wants to be left alone; 0 at the end
 * @throws {Problem}
 */
export async function scorePictures(pictures, rung, lr, signal, waiting) {
  const stale = pictures.filter((picture) => !isScored(picture, rung, lr));
  for (const group of groups(stale, rung)) {
    const begun = performance.now();
    const options = { ...optionsFor(group[0], rung), regions: "false" }; // the page finds them itself
    const reply = await withPatience(() => withToken(() => score(group, lr, options, signal)), signal, waiting);
    const elapsed = performance.now() - begun;
    for (const [index, item] of reply.items.entries()) {
      const map = item.map === null ? null : await decodeMap(item.map);
      group[index].result = { model: reply.model, lr, timing: reply.timing, elapsed, item, map };
    }
  }
  const digests = new Set(pictures.map((picture) => picture.result.model.digest));
  if (digests.size < 2) return;
  for (const picture of pictures) picture.result = null; // the rung was changed on the server: numbers of two cannot be compared
  await scorePictures(pictures, rung, lr, signal, waiting);
}

function groups(pictures, rung) {
  const byOptions = Map.groupBy
    ? Map.groupBy(pictures, (picture) => JSON.stringify(optionsFor(picture, rung)))
    : new Map(pictures.map((picture) => [picture, [picture]]));
  return byOptions.values();
}

async function withToken(ask) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 401) throw error;
      await askForToken();
    }
  }
}

async function withPatience(ask, signal, waiting) {
  for (let tries = 1; ; tries++) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 503 || error.retryAfter === null || tries === PATIENCE) throw error;
      for (let left = Math.max(1, error.retryAfter); left > 0; left--) {
        waiting(left);
        await new Promise((resolve) => setTimeout(resolve, 1000));
        signal.throwIfAborted();
      }
      waiting(0);
    }
  }
}
