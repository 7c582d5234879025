/** The toolbar above the picture, and what a click does. */

import { goOn, toggleLock, undo } from "./actions.js";
import { element, make, onPress, pressed } from "./dom.js";
import { choosePlane } from "./open.js";
import { set, state, watch } from "./state.js";
import { fit } from "./viewport.js";

function drawPlanes() {
  const box = element("planes");
  const buttons = Object.keys(state.image?.planes ?? {}).map(plane => {
    const button = make("button", { type: "button", textContent: plane[0].toUpperCase() + plane.slice(1) });
    pressed(button, plane === state.plane);
    button.addEventListener("click", () => choosePlane(plane));
    return button;
  });
  const focus = [...box.children].indexOf(document.activeElement);
  box.replaceChildren(...buttons);
  if (focus >= 0) buttons[focus]?.focus();
}

/** The windows to choose from: those of the image, and the one that the agent looks through. */
function windows() {
  const found = [...state.image?.windows ?? []];
  const seen = state.run?.slices(state.target).find(slice => slice.record)?.record.window;
  if (seen && state.run.image === state.image?.id) found.unshift({ ...seen, name: "agent's view" });
  return found;
}

function drawWindows() {
  const select = element("window"), choices = windows();
  const now = state.window.name || "window", names = choices.map(({ name }) => name);
  if (!names.includes(now)) names.push(now);
  if (select.dataset.names !== names.join("|")) {
    select.replaceChildren(...names.map(name => make("option", { value: name, textContent: name })));
    select.dataset.names = names.join("|");
  }
  select.value = now;
  select.disabled = !state.image || state.image.stored.colour;
}

export function nextWindow() {
  const choices = windows();
  if (!choices.length) return;
  const at = choices.findIndex(({ name }) => name === state.window.name);
  set({ window: choices[(at + 1) % choices.length] });
}

export const toggle = name => set({ [name]: !state[name] });
export const chooseMode = mode => set({ mode, crosshair: null });

export function setUpTools() {
  element("opacity").value = String(state.opacity * 100);
  element("opacity").addEventListener("input", event => set({ opacity: event.target.value / 100, overlay: true }));
  for (const name of ["overlay", "outline", "marks"]) onPress(element(name), () => toggle(name));
  onPress(element("fit"), fit);
  onPress(element("undo"), () => undo());
  onPress(element("lock"), toggleLock);
  onPress(element("continue"), goOn);
  element("window").addEventListener("change", event => {
    const chosen = windows().find(({ name }) => name === event.target.value);
    if (chosen) set({ window: chosen });
  });
  const modes = [...element("modes").children];
  for (const button of modes) onPress(button, () => chooseMode(button.dataset.mode));
  const drawModes = () => { for (const button of modes) pressed(button, button.dataset.mode === state.mode); };
  drawModes();
  drawWindows();
  watch(["mode"], drawModes);
  watch(["image", "plane"], drawPlanes);
  watch(["image", "run", "journal", "window", "target"], drawWindows);
  watch(["image", "run", "journal"], adopt);
}

/** A run's window is taken over once, unless the person has chosen one. */
function adopt() {
  const seen = windows()[0], untouched = state.window.name === state.image?.window.name;
  if (seen?.name === "agent's view" && untouched && adopt.run !== state.run) set({ window: seen });
  if (seen?.name === "agent's view") adopt.run = state.run;
}
