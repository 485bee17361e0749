/** Copying text. On plain HTTP from another machine browsers offer no clipboard; the text is then selected instead. */

import { element } from "./elements.js";

const MOMENT = 1200; // ms

/** Copy on click, and say so in place of the button's label for a moment; the label stays in the page, for it may be the source. */
export function copyOnClick(button, source, text = () => source.textContent) {
  const label = element("span", {}, ...button.childNodes);
  const said = element("span", { hidden: true }, "Copied");
  let timer;
  const show = (copied) => {
    label.hidden = copied;
    said.hidden = !copied;
  };
  button.replaceChildren(label, said);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      show(true);
      clearTimeout(timer);
      timer = setTimeout(show, MOMENT, false);
    } catch {
      getSelection().selectAllChildren(source);
    }
  });
}
