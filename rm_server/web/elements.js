/** Making elements in one expression. Text is always text: nothing here reads HTML. */

/**
 * @param {string} tag
 * @param {Record<string, unknown>} properties of the element; `class` is its class name
 * @param {...(Node | string)} children
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { class: className = "", ...rest } = properties;
  made.className = className;
  Object.assign(made, rest);
  made.append(...children);
  return made;
}

/** The element of an id. */
export const byId = (id) => document.getElementById(id);
