/** The strip: every slice of the plane as a bar; height and colour say how sure the mask is, shapes what is special. */

import { element, make, swatch, write } from "./dom.js";
import { goTo } from "./open.js";
import { set, state, watch } from "./state.js";
import { planeOf, target } from "./viewport.js";
import { LEGEND, level, summary } from "./words.js";

const strip = element("strip");
let drawn = "";

function rebuild() {
  const plane = planeOf(), name = plane ? `${state.image.id} ${state.plane}` : "";
  if (name === drawn) return;
  drawn = name;
  const bars = plane ? Array.from({ length: plane.slices }, () => make("div", { className: "bar none" }, make("i"))) : [];
  strip.replaceChildren(...bars);
  write(element("strip-start"), plane ? `${state.plane} 0` : "");
  write(element("strip-end"), plane ? String(plane.slices - 1) : "");
}

function draw() {
  rebuild();
  const own = state.run && target()?.plane === state.plane;
  const planned = new Set(own ? state.run.planned[state.target - 1] : []);
  for (let index = 0; index < strip.children.length; index++) {
    const slice = own ? state.run.slice(state.target, index) : null, bar = strip.children[index];
    const name = level(slice);
    const look = `bar ${name}${slice?.locked ? " locked" : ""}${planned.has(index) && name === "none" ? " planned" : ""}`;
    if (bar.className !== look) bar.className = look;
    const height = ["none", "absent"].includes(name) ? "" : `${Math.round(12 + 88 * (slice.confidence ?? 0.5))}%`;
    if (bar.firstChild.style.height !== height) bar.firstChild.style.height = height;
  }
  place();
}

function place() {
  const plane = planeOf();
  strip.querySelector(".current")?.classList.remove("current");
  strip.children[state.index]?.classList.add("current");
  strip.setAttribute("aria-valuemax", String(plane ? plane.slices - 1 : 0));
  strip.setAttribute("aria-valuenow", String(state.index));
  const slice = state.run && target()?.plane === state.plane ? state.run.slice(state.target, state.index) : null;
  strip.setAttribute("aria-valuetext", `slice ${state.index}${state.run ? `, ${summary(slice)}` : ""}`);
}

function at(event) {
  const room = strip.getBoundingClientRect();
  return Math.floor((event.clientX - room.left) / room.width * strip.children.length);
}

function keyed(event) {
  const last = strip.children.length - 1;
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -last, End: last };
  if (!(event.key in steps) || last < 0) return;
  event.preventDefault();
  event.stopPropagation();
  set({ follow: false, playing: false });
  goTo(state.index + steps[event.key]);
}

export function setUpStrip() {
  element("legend").replaceChildren(...LEGEND.map(([name, words]) =>
    make("li", {}, swatch(name), words)));
  strip.addEventListener("pointerdown", event => {
    strip.setPointerCapture(event.pointerId);
    set({ follow: false, playing: false });
    goTo(at(event));
  });
  strip.addEventListener("pointermove", event => {
    if (strip.hasPointerCapture(event.pointerId)) return goTo(at(event));
    const index = at(event), slice = state.run && target()?.plane === state.plane ? state.run.slice(state.target, index) : null;
    strip.title = `Slice ${index}${state.run ? `: ${summary(slice)}` : ""}`;
  });
  strip.addEventListener("keydown", keyed);
  watch(["image", "plane", "run", "journal", "target"], draw);
  watch(["index"], place);
  watch(["run"], () => { element("legend").hidden = state.run === null; });
}
