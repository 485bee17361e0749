/** What the page says beside its results: what it does, what went wrong, and the token it asks for. */

import { hasToken, isToken, useToken } from "./api.js";
import { byId } from "./elements.js";

/** Tell a screen reader, and nobody else, what happens. */
export function say(text) {
  byId("status").textContent = text;
}

/** Show or hide that the server is at work. */
export function showBusy(text) {
  byId("busy").hidden = text === null;
  byId("busy").textContent = text ?? "";
  document.body.classList.toggle("scoring", text !== null);
}

/** Show a problem; `retry`, where given, is what "Try again" does. */
export function showProblem({ title, detail }, retry = null) {
  byId("problem-title").textContent = title;
  byId("problem-detail").textContent = detail;
  byId("retry").hidden = retry === null;
  byId("retry").onclick = retry;
  byId("problem").hidden = false;
}

/** Take the problem away. */
export function clearProblem() {
  byId("problem").hidden = true;
}

/** Ask for the server's token; resolves when one was given. */
export function askForToken() {
  const form = byId("token-form");
  byId("token-fault").textContent = hasToken() ? "That is not this server's token." : "";
  form.hidden = false;
  byId("token").value = "";
  byId("token").focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      if (!isToken(byId("token").value)) {
        byId("token-fault").textContent = "A token is made of printable ASCII characters alone; this has another, or none.";
        return;
      }
      useToken(byId("token").value);
      form.hidden = true;
      resolve();
    };
  });
}
