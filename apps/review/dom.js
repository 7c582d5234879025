/** The document: finding and making elements. Text from anywhere reaches it through `textContent` only. */

export const element = id => document.getElementById(id);

/** An element with properties (those of `data` and `aria` by name, such as {aria: {label: "x"}}) and children. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  const { aria = {}, data = {}, ...others } = properties;
  for (const [name, value] of Object.entries(aria)) node.setAttribute(`aria-${name}`, value);
  Object.assign(node.dataset, data);
  Object.assign(node, others);
  node.append(...children.filter(child => child !== null && child !== ""));
  return node;
}

/** An element with a text. */
export const word = (tag, textContent, className = "") => make(tag, { textContent, className });

/** The shape and colour of a level of confidence (words.js); words stand beside it. */
export const swatch = name => make("i", { className: `swatch ${name}`, aria: { hidden: "true" } });

/** Set text only where it differs: a live region, and a selection, stay undisturbed. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function pressed(node, is) {
  node.setAttribute("aria-pressed", String(is));
}

/** A button that cannot be used stays in the focus order and says why. */
export function usable(node, is, why = "") {
  node.setAttribute("aria-disabled", String(!is));
  node.dataset.title ??= node.title;
  node.title = is ? node.dataset.title : why || node.dataset.title;
}

export const isUsable = node => node.getAttribute("aria-disabled") !== "true";

/** Hide an element or show it; a focus that it had goes to the head of the run. */
export function reveal(node, is) {
  const had = !is && node.contains(document.activeElement);
  node.hidden = !is;
  if (had) element("run-title").focus({ preventScroll: true });
}

/** Call `act` on a click, unless the button cannot be used. */
export function onPress(node, act) {
  node.addEventListener("click", event => {
    if (isUsable(node)) act(event);
    else say(node.title);
  });
}

/** Say something politely to who listens to the page. */
export function say(text) {
  write(element("live"), text);
}
