/** The keyboard: what every key does, and the help that lists them. */

import { click, goOn, hindrance, stop, toggleLock, undo } from "./actions.js";
import { element, make, onPress, word } from "./dom.js";
import { clearNotices, keepFree } from "./notices.js";
import { choosePlane, goTo } from "./open.js";
import { stepBy, togglePlay } from "./playback.js";
import { characterKeys } from "./settings.js";
import { set, state } from "./state.js";
import { chooseMode, nextWindow, toggle } from "./tools.js";
import { fit, planeOf, zoomBy } from "./viewport.js";
import { nextWorst } from "./worst.js";

function scroll(by) {
  set({ follow: false, playing: false });
  goTo(state.index + by);
}

function zoom(factor) {
  const room = element("canvas").getBoundingClientRect();
  if (planeOf()) zoomBy(factor, room.left + room.width / 2, room.top + room.height / 2);
}

/** Key (with `event.key`), how it is written, what it says in the help, what it does. */
const KEYS = [
  [["ArrowUp"], "↑", "next slice (also the wheel)", () => scroll(1)],
  [["ArrowDown"], "↓", "previous slice", () => scroll(-1)],
  [["PageUp"], "Page ↑", "ten slices on", () => scroll(10)],
  [["PageDown"], "Page ↓", "ten slices back", () => scroll(-10)],
  [["ArrowLeft"], "←", "previous turn", () => stepBy(-1)],
  [["ArrowRight"], "→", "next turn", () => stepBy(1)],
  [[" "], "Space", "play the turns, pause", togglePlay],
  [["j"], "J", "next slice to look at", nextWorst],
  [["1"], "1", "axial", () => choosePlane("axial")],
  [["2"], "2", "coronal", () => choosePlane("coronal")],
  [["3"], "3", "sagittal", () => choosePlane("sagittal")],
  [["b"], "B", "browse: a drag moves the picture", () => chooseMode("browse")],
  [["p"], "P", "a click adds (Shift or Alt: removes)", () => chooseMode("positive")],
  [["n"], "N", "a click removes", () => chooseMode("negative")],
  [["u"], "Ctrl Z, U", "take your last click back", () => undo()],
  [["l"], "L", "lock the slice, unlock it", toggleLock],
  [["c"], "C", "let the agent go on", goOn],
  [["s"], "S", "stop the agent", stop],
  [["o"], "O", "mask on, off", () => toggle("overlay")],
  [["e"], "E", "mask as outline", () => toggle("outline")],
  [["m"], "M", "clicks on, off", () => toggle("marks")],
  [["w"], "W", "next window (also a drag with the right button)", nextWindow],
  [["+", "="], "+", "larger (also Ctrl wheel)", () => zoom(1.25)],
  [["-"], "−", "smaller", () => zoom(0.8)],
  [["f"], "F", "fit the picture", fit],
  [["?"], "?", "this help", () => showHelp()],
];
const ACTS = new Map(KEYS.flatMap(([keys, , , act]) => keys.map(key => [key, act])));
const CLICKS = "On the picture in a click mode: arrows move a crosshair (Shift: ten pixels), Enter clicks there, Escape ends " +
  "the mode and closes messages. A round mark is the agent's click, a square one yours; each carries the number of its turn.";
/** Elements that use keys themselves. */
const TYPING = "input:not([type=range]), textarea, select, dialog[open]";

function showHelp() {
  const dialog = element("keys");
  if (!dialog.open) dialog.showModal();
}

/** Whether a key that writes a character may be one: who dictates, or hits keys by mistake, can switch those off. */
const writes = key => key.length === 1 && key !== " ";

/** In a click mode arrows on the picture move the crosshair, Enter clicks. True when the key was for it. */
function crosshair(event) {
  if (state.mode === "browse" || document.activeElement !== element("stage")) return false;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const at = state.crosshair ?? { x: 0.5, y: 0.5 }, plane = planeOf();
  if (event.key in steps && plane) {
    const [dx, dy] = steps[event.key], far = event.shiftKey ? 10 : 1, clamp = value => Math.min(0.9999, Math.max(0, value));
    const moved = { x: clamp(at.x + dx * far / plane.width), y: clamp(at.y + dy * far / plane.height) };
    set({ crosshair: moved });
    keepFree(moved.y < 0.5);
    return true;
  }
  if (event.key === "Enter" && !hindrance()) {
    set({ crosshair: at });
    click(at.x, at.y, state.mode === "positive");
    return true;
  }
  return false;
}

function keyed(event) {
  if (event.target.closest(TYPING)) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.shiftKey) {
    event.preventDefault();
    undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    clearNotices();
    return chooseMode("browse");
  }
  if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
  if (event.key === " " && event.target.closest("button, a, summary")) return;
  if (writes(event.key) && !characterKeys.on) return;
  const act = crosshair(event) ? () => {} : ACTS.get(event.key.length === 1 ? event.key.toLowerCase() : event.key);
  if (!act) return;
  event.preventDefault();
  act();
}

export function setUpKeys() {
  const rows = KEYS.flatMap(([, written, says]) => [make("dt", {}, word("kbd", written)), word("dd", says)]);
  const choice = make("input", { type: "checkbox", id: "character-keys", checked: characterKeys.on });
  choice.addEventListener("change", () => { characterKeys.on = choice.checked; });
  element("keys").append(
    make("h2", { id: "keys-title", textContent: "Keys" }),
    make("dl", {}, ...rows),
    word("p", CLICKS, "soft"),
    make("label", { className: "choice" }, choice, "Letters, digits and signs are keys"),
    word("p", "Switch them off for dictation, or if you hit keys by mistake. Arrows, Page, Space, Enter, Escape and Ctrl Z " +
      "stay.", "soft"),
    make("form", { method: "dialog" }, make("button", { className: "main", textContent: "Close" })));
  onPress(element("help"), showHelp);
  document.addEventListener("keydown", keyed);
}
