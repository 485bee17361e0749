/** Copying text. On plain HTTP from another machine browsers offer no clipboard; the text is then selected instead. */

/** Copy on click, and say so on the button for a moment. */
export function copyOnClick(button, source, text = () => source.textContent) {
  button.addEventListener("click", async () => {
    const label = [...button.childNodes];
    try {
      await navigator.clipboard.writeText(text());
      button.replaceChildren("Copied");
      setTimeout(() => button.replaceChildren(...label), 1200);
    } catch {
      getSelection().selectAllChildren(source);
    }
  });
}
