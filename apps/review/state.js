/** What the page shows. Whoever changes it says so by `set`; whoever draws a part of it watches the names it depends on, and is
 *  called once per frame. */

export const state = {
  /** The image's view as the server gives it, and its slices. */
  image: null,
  slices: null,
  /** Grows when slices have arrived. */
  arrived: 0,
  /** The run that is shown (run.js), and how often it has changed. */
  run: null,
  journal: 0,
  /** 1 for the first. */
  target: 1,
  plane: "axial",
  index: 0,
  /** Which turn's mask is shown; null: what the slice has come to. */
  turn: null,
  window: { name: "", low: 0, high: 1 },
  overlay: true,
  outline: false,
  marks: true,
  opacity: 0.45,
  /** "browse", "positive" or "negative". */
  mode: "browse",
  follow: false,
  playing: false,
  zoom: 1,
  /** The view's point in the middle of the viewport, 0..1. */
  x: 0.5,
  y: 0.5,
  /** Where a click by key would go, 0..1; null until it is used. */
  crosshair: null,
  /** The clicks on their way: {run (its id), target, index, x, y, positive}. */
  pending: [],
  /** The server's images: {id, name, labelled}. */
  images: [],
  /** What the server says of gradings: null before it was asked, false when it keeps none. */
  gradings: null,
  tab: "turns",
  form: false,
  identity: 0,
};

const watchers = [];
const changed = new Set();
let frame = 0;

/** Call `draw` in the next frame after any of `names` has changed. */
export function watch(names, draw) {
  watchers.push([new Set(names), draw]);
}

export function set(values) {
  for (const [name, value] of Object.entries(values)) {
    if (state[name] === value) continue;
    state[name] = value;
    changed.add(name);
  }
  if (changed.size && !frame) frame = requestAnimationFrame(flush);
}

/** Draw everything once. */
export function drawAll() {
  for (const [, draw] of watchers) draw();
}

function flush() {
  frame = 0;
  const names = [...changed];
  changed.clear();
  for (const [wanted, draw] of watchers) if (names.some(name => wanted.has(name))) draw();
}
