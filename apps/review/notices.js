/** What went wrong, and what else a person should know: sentences that stay until they are closed. They lie over the picture
 *  and do not move it. */

import { element, make } from "./dom.js";

const MOST = 3;
let low = false;

/** Leave the upper half of the picture free, or the lower one: a person clicks there. What is shown stays where it is. */
export function keepFree(upper) {
  low = upper;
}

/** `kind`: "error" or "note". The same sentence stands there once. */
export function notice(text, kind = "error") {
  const box = element("notices");
  for (const one of [...box.children]) if (one.dataset.text === text) one.remove();
  if (!box.children.length) box.classList.toggle("low", low);
  const close = make("button", { type: "button", className: "quiet", textContent: "Close" });
  const row = make("div", { className: `notice ${kind}`, data: { text } }, make("p", { textContent: text }), close);
  close.addEventListener("click", () => row.remove());
  box.append(row);
  while (box.children.length > MOST) box.firstElementChild.remove();
}

export function clearNotices() {
  element("notices").replaceChildren();
}

/** Do something that may be refused; false, and a notice, when it was. */
export async function attempt(act) {
  try {
    await act();
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    notice(error.message);
    return false;
  }
}
