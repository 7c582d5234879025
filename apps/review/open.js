/** Opening images and runs, and following a run's events. */

import { AXES, middle } from "./across.js";
import { say } from "./dom.js";
import { clearNotices, notice } from "./notices.js";
import { Run } from "./run.js";
import { call, events, ServerError } from "./server.js";
import { Slices } from "./slices.js";
import { set, state } from "./state.js";
import { STATUS } from "./words.js";

const AGAIN_MS = 1500;
let opening = 0;
let watching = new AbortController();

/** Show an image without a run; `keep` leaves plane and slice to the caller. */
export async function openImage(id, keep = false) {
  const mine = ++opening;
  watching.abort();
  clearNotices();
  await showImage(id, mine, keep);
  if (mine === opening) set({ run: null, form: true, turn: null, gradings: null, playing: false, follow: false });
}

async function showImage(id, mine, keep) {
  if (state.image?.id === id) return set(placeOn(state.image, true));
  say("The image is loading.");
  const image = await call("GET", `ibis/images/${encodeURIComponent(id)}`);
  if (mine !== opening) return;
  state.slices?.close();
  const failed = error => notice(error.message);
  const slices = new Slices(image, () => set({ arrived: state.arrived + 1 }), failed);
  const fresh = { window: image.window, zoom: 1, x: 0.5, y: 0.5, crosshair: null, mode: "browse" };
  set({ image, slices, ...placeOn(image, keep), ...fresh });
}

/** Plane and slice of an image to show: those of the state as far as it has them (`keep`), else its middle. */
function placeOn(image, keep) {
  const plane = keep && image.planes[state.plane] ? state.plane : "axial", last = image.planes[plane].slices - 1;
  return { plane, index: keep ? Math.min(state.index, last) : Math.floor(last / 2) };
}

/** Show a run at a place: {target, plane, index, turn}, each of which may be left out. Does not wait for a run that goes on. */
export async function openRun(id, at = {}, follow = false) {
  const mine = ++opening;
  watching.abort();
  clearNotices();
  const run = new Run(await call("GET", `ibis/runs/${id}`));
  if (mine !== opening) return;
  const target = Math.min(at.target ?? 1, run.targets.length);
  const plane = at.plane ?? run.targets[target - 1].plane;
  set({
    run, target, plane, form: false, follow, turn: at.turn ?? null, tab: "turns", gradings: null, playing: false,
    ...(at.index === undefined ? {} : { index: at.index }),
  });
  const blind = error => notice(`The image of this run cannot be shown: ${error.message}`);
  const image = showImage(run.image, mine, true).catch(blind);
  watching = new AbortController();
  const first = keepUp(run, watching.signal, at.index === undefined && !follow);
  await image;
  if (run.ended) await first;
}

/** Read the run's events up to its end, or for as long as it goes on. */
async function keepUp(run, signal, seek) {
  const asked = run.status;
  while (!signal.aborted) {
    try {
      for await (const found of events(run.id, run.seq, signal)) {
        for (const event of found) run.apply(event);
        if (!signal.aborted) set({ journal: state.journal + 1 });
      }
      if (run.ended) break;
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ServerError)) throw error;
      if (error.status !== 0) return notice(error.message);
      say("The connection was lost. Trying again.");
    }
    await new Promise(resolve => setTimeout(resolve, AGAIN_MS));
  }
  if (signal.aborted) return;
  if (seek) seekTarget(run);
  if (asked !== run.status) say(`The run is ${STATUS[run.status]}. ${run.error || run.answer}`);
  if (state.image && run.contentHash && run.contentHash !== state.image.content_hash) {
    notice("The image is not the one that this run looked at: it has changed since, or was read as another modality.");
  }
}

/** Take in what has happened to the run since. One that goes on is watched as it is. */
export async function catchUp() {
  if (state.run.ended) await follow(state.run);
}

/** Watch the run, which the agent works on again; does not wait for its end. */
export function goOnWatching() {
  state.run.status = "queued";
  set({ journal: state.journal + 1 });
  follow(state.run);
}

function follow(run) {
  watching.abort();
  watching = new AbortController();
  return keepUp(run, watching.signal, false);
}

/** Go to the slice on which the target is largest. */
export function seekTarget(run) {
  const slices = run.slices(state.target).filter(slice => slice.mask);
  if (!slices.length || state.plane !== run.targets[state.target - 1].plane) return;
  const best = slices.reduce((a, b) => b.area > a.area ? b : a);
  set({ index: best.index, turn: null });
}

/** Show another plane, through the same slice and the middle of its mask. */
export function choosePlane(plane) {
  const { image, run } = state;
  if (!image?.planes[plane] || plane === state.plane) return;
  const place = { r: 0.5, a: 0.5, s: 0.5, ...places.get(image) };
  place[AXES[state.plane].normal] = (state.index + 0.5) / image.planes[state.plane].slices;
  const mask = run?.targets[state.target - 1].plane === state.plane ? run.slice(state.target, state.index)?.mask : null;
  if (mask?.area) Object.assign(place, middle(mask, state.plane));
  places.set(image, place);
  const index = Math.floor(place[AXES[plane].normal] * image.planes[plane].slices);
  set({ plane, index, turn: null, zoom: 1, x: 0.5, y: 0.5, crosshair: null, playing: false, follow: false });
}
/** For each image the place that its planes go through, 0..1 from left, posterior, inferior. */
const places = new WeakMap();

/** Go to a slice; what it has come to is shown, or its turn `turn`. */
export function goTo(index, turn = null) {
  const slices = state.image?.planes[state.plane]?.slices;
  if (!slices) return;
  set({ index: Math.min(slices - 1, Math.max(0, index)), turn });
}

/** Go to a slice of the run's own plane. */
export function goToSlice(index, turn = null) {
  choosePlane(state.run.targets[state.target - 1].plane);
  set({ follow: false, playing: false });
  goTo(index, turn);
}

export function chooseTarget(number) {
  set({ target: number, turn: null });
  seekTarget(state.run);
}
