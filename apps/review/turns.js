/** What happened on the slice that is shown, turn by turn. */

import { undo } from "./actions.js";
import { element, make, pressed, swatch, usable, word, write } from "./dom.js";
import { rewardOf } from "./gradings.js";
import { set, state, watch } from "./state.js";
import { place, planeOf, slice, target } from "./viewport.js";
import { ACTIONS, SIGNS, STOPS, areaText, level, number, percent, sentence } from "./words.js";

let drawn = [];
let shownAt = -1;

function summarise(one) {
  const box = element("summary"), mm = planeOf()?.pixel_mm ?? null;
  const title = make("h3", { textContent: `Slice ${state.index}` });
  if (!one) {
    const own = target()?.plane === state.plane;
    const asked = state.run.planned[state.target - 1]?.includes(state.index);
    const text = !own ? `This run works on ${target().plane} slices. Its mask is shown here as it lies across them.`
      : asked ? "The agent has not come here yet." : "The agent was not asked to look here. Your own click begins a mask.";
    return box.replaceChildren(make("div", { className: "row" }, title), make("p", { className: "soft", textContent: text }));
  }
  const absent = one.reason === "absent" && !one.mask;
  const known = one.playing ? `Turn ${one.steps.length + 1}` : absent ? "Absent" : `Confidence ${percent(one.confidence)}`;
  const badge = make("span", { className: "confidence" }, swatch(level(one)), known);
  const lines = [make("div", { className: "row" }, title, badge)];
  const why = one.playing ? "The agent is at work." : STOPS[one.reason] ?? "";
  if (why) lines.push(make("p", { textContent: `${why}${one.locked ? " Locked." : ""}` }));
  const detail = one.playing ? "" : one.record?.stop_detail;
  if (detail) lines.push(word("p", sentence(detail), one.conclusive ? "soft" : "bad"));
  if (one.mask && !one.playing) {
    const because = one.record?.chosen_because ? ` – ${one.record.chosen_because}` : "";
    const turn = one.record?.final_turn ? `mask of turn ${one.record.final_turn}` : "mask";
    lines.push(make("p", { className: "soft", textContent: `Kept: ${turn}, ${areaText(one.area, mm)}${because}.` }));
  }
  box.replaceChildren(...lines);
}

function measures(one, step, i) {
  const mm = planeOf()?.pixel_mm ?? null, after = one.maskAfter(i)?.area ?? 0, before = i ? one.maskAfter(i - 1)?.area ?? 0 : 0;
  const pairs = [];
  if (step.mask) pairs.push(["Mask", areaText(after, mm)]);
  if (step.mask && i) pairs.push(["Change", `${after >= before ? "+" : ""}${number(after - before)} px`]);
  if (step.score !== null && step.score !== undefined) pairs.push(["Score", percent(step.score)]);
  if (step.support !== null && step.support !== undefined) pairs.push(["Support", percent(step.support)]);
  const reward = rewardOf(state.target, one.index, step.turn);
  if (reward) pairs.push(["Reward", number(reward.total, 2)]);
  const items = pairs.map(([name, value]) => make("span", {}, `${name} `, word("b", value)));
  return make("p", { className: "measures" }, ...items);
}

function turnItem(one, step, i) {
  const { kind } = step.action;
  const head = make("button", { type: "button", className: "turn" },
    make("b", { className: `sign ${kind}`, textContent: SIGNS[kind], aria: { hidden: "true" } }),
    make("span", { textContent: `${step.turn}. ${ACTIONS[kind]}` }));
  if (step.actor === "annotator") head.append(word("span", "yours", "tag"));
  if (step.undone) head.append(word("span", "taken back", "tag"));
  if (step.turn === one.record?.final_turn) head.append(word("span", "kept", "tag"));
  head.addEventListener("click", () => set({ turn: step.turn, playing: false, follow: false }));
  const row = make("div", { className: "row" }, head);
  const back = step.mask && !step.undone && ["positive", "negative"].includes(kind) && state.run.ended && !one.locked;
  if (back) {
    const label = `Take back the click of turn ${step.turn}`;
    const button = make("button", { type: "button", className: "quiet", textContent: "Take back", aria: { label } });
    button.addEventListener("click", () => undo(step.turn));
    row.append(button);
  }
  const item = make("li", { className: step.undone ? "undone" : "" }, row);
  if (step.thought) item.append(word("p", step.thought, "thought"));
  if (kind === "terminate" && step.action.detail) item.append(word("p", `Answer: ${step.action.detail}`, "thought"));
  if (kind === "error") item.append(word("p", step.action.detail, "bad"));
  item.append(measures(one, step, i));
  if (step.reply) item.append(make("details", {}, word("summary", "Raw reply"), word("pre", step.reply)));
  return item;
}

function draw() {
  if (!state.run || element("page-turns").hidden) return;
  const one = slice();
  summarise(one);
  const key = one ? [state.run.id, one.steps, one.playing, one.locked, state.run.ended, state.gradings, state.target] : [];
  const list = element("turns");
  const complete = list.children.length === (one?.steps.length ?? 0);
  const same = key.length > 0 && key.length === drawn.length && key.every((part, i) => part === drawn[i]) && complete;
  if (!same) {
    const focus = [...list.children].findIndex(row => row.contains(document.activeElement));
    list.replaceChildren(...(one?.steps ?? []).map((step, i) => turnItem(one, step, i)));
    list.children[focus]?.querySelector("button").focus({ preventScroll: true });
  }
  drawn = key;
  const at = state.turn === null ? -1 : place(), moved = at !== shownAt || !same;
  shownAt = at;
  [...list.children].forEach((item, i) => {
    item.classList.toggle("chosen", i === at);
    if (i === at) item.firstChild.firstChild.setAttribute("aria-current", "step");
    else item.firstChild.firstChild.removeAttribute("aria-current");
  });
  const seen = list.children[at] ?? (one?.playing || one?.touched ? list.lastElementChild : list.firstElementChild);
  if (seen && moved) seen.scrollIntoView({ block: "nearest" });
}

export function setUpTurns() {
  watch(["run", "journal", "target", "plane", "index", "turn", "gradings", "tab", "form", "image"], draw);
  watch(["run", "journal", "target", "plane", "index"], () => {
    const locked = slice()?.locked ?? false;
    pressed(element("lock"), locked);
    write(element("lock"), locked ? "Unlock" : "Lock");
    const own = state.run !== null && target()?.plane === state.plane, free = own && state.run.ended;
    const elsewhere = state.run && !own ? `Only on the run's own slices: ${target()?.plane}` : "";
    const why = !state.run ? "There is no run yet" : elsewhere || "The agent is at work: stop it first";
    usable(element("lock"), free, why);
    usable(element("undo"), free && !locked, locked ? "This slice is locked" : why);
    const touched = state.run?.slices(state.target).filter(one => one.touched && !one.locked).length ?? 0;
    const open = Boolean(state.run?.ended) && (touched > 0 || (own && !locked));
    usable(element("continue"), open, locked ? "This slice is locked" : why);
    write(element("continue"), touched > 1 ? `Agent goes on (${touched})` : "Agent goes on");
  });
}
