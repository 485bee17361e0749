/** What the page says to the server it came from. Knows nothing about the page. */

const STORED = "finpercep-token";

/** Why there is no answer: problem details (RFC 9457), or their like for a server that cannot be reached. */
export class Problem extends Error {
  /** @param {{title: string, detail: string, status?: number, retryAfter?: number | null}} parts */
  constructor({ title, detail, status = 0, retryAfter = null }) {
    super(detail);
    Object.assign(this, { title, detail, status, retryAfter });
  }
}

const kept = stored(() => sessionStorage.getItem(STORED)) ?? "";
let token = isToken(kept) ? kept : "";

/** Whether a token has been given. */
export function hasToken() {
  return token !== "";
}

/** Whether a text can be a token: printable ASCII. A header of other characters is refused by the browser, or by the server. */
export function isToken(text) {
  return /^[ -~]+$/.test(text.trim());
}

/** Send this token (`isToken`) from now on; it lives as long as the tab. */
export function useToken(text) {
  token = text.trim();
  stored(() => sessionStorage.setItem(STORED, token));
}

/** The rungs that are served: `GET /model`. */
export async function getModel() {
  return (await ask("model")).json();
}

/**
 * Score pictures: `POST /score`.
 * @param {{name: string, blob: Blob}[]} pictures
 * @param {{name: string, blob: Blob} | null} lr the low-resolution picture that all of them were made from
 * @param {Record<string, string>} options query parameters
 * @param {AbortSignal} signal
 */
export async function score(pictures, lr, options, signal) {
  const body = new FormData();
  for (const picture of pictures) {
    body.append("image", picture.blob, picture.name);
    if (lr) body.append("lr", lr.blob, lr.name);
  }
  return (await ask(`score?${new URLSearchParams(options)}`, { method: "POST", body, signal })).json();
}

/** Bytes of a file of the page itself. */
export async function getFile(path) {
  return (await ask(path)).blob();
}

async function ask(path, request = {}) {
  let answer;
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    answer = await fetch(new URL(path, document.baseURI), { ...request, headers, cache: "no-cache" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The server cannot be reached", detail: `Is it still running? (${error.message})` });
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

async function problemOf(answer) {
  const seconds = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
  const told = await answer.json().catch(() => ({}));
  return new Problem({
    title: told.title ?? `The server answered ${answer.status}`,
    detail: told.detail ?? answer.statusText,
    status: answer.status,
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

/** Storage may be forbidden; the token then lives as long as the page. */
function stored(access) {
  try {
    return access();
  } catch {
    return null;
  }
}
