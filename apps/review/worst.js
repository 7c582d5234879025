/** Where to look first: the slices of the target, the least sure ones on top. */

import { element, make, say, swatch, word } from "./dom.js";
import { goToSlice } from "./open.js";
import { state, watch } from "./state.js";
import { STOPS, level, percent } from "./words.js";

/** The slices worth a look, worst first: unfinished, then by confidence; what a person has checked comes last. */
function worstFirst() {
  const rank = slice => {
    if (level(slice) === "checked") return 3;
    return slice.conclusive ? slice.confidence ?? 1 : -1;
  };
  const found = state.run?.slices(state.target).filter(slice => !slice.playing && slice.record) ?? [];
  const worth = found.filter(slice => slice.mask || !slice.conclusive || level(slice) === "checked");
  return worth.sort((a, b) => rank(a) - rank(b) || a.index - b.index);
}

/** Go to the worst slice that nobody has checked, and on from there to the next ones. */
export function nextWorst() {
  const open = worstFirst().filter(slice => level(slice) !== "checked");
  if (!open.length) return say("No slice is left to look at.");
  const at = state.index === went ? open.findIndex(slice => slice.index === went) : -1;
  went = open[(at + 1) % open.length].index;
  goToSlice(went);
}
/** The slice that the list led to last. */
let went = -1;

function draw() {
  if (!state.run || element("page-worst").hidden) return;
  const list = element("worst"), top = list.scrollTop;
  const rows = worstFirst().map(slice => {
    const name = level(slice);
    const sure = name === "open" ? "not finished" : percent(slice.confidence);
    const under = name === "checked" ? (slice.locked ? "locked" : "corrected by you") : STOPS[slice.reason] ?? "";
    const button = make("button", { type: "button", className: "item" },
      make("span", { className: "name" }, swatch(name), `Slice ${slice.index}`), word("span", sure, "value"),
      word("span", under, "under soft"));
    if (slice.index === state.index) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => goToSlice(went = slice.index));
    return make("li", {}, button);
  });
  if (!rows.length) rows.push(word("li", state.run.ended ? "No slice has a mask." : "No slice is finished yet.", "soft"));
  const focus = [...list.children].findIndex(row => row.contains(document.activeElement));
  list.replaceChildren(...rows);
  if (focus >= 0) rows[focus]?.querySelector("button")?.focus({ preventScroll: true });
  list.scrollTop = top;
}

export function setUpWorst() {
  watch(["run", "journal", "target", "index", "tab", "form"], draw);
}
