/** What a person does with a run. Every change comes back as the run's events; nothing is drawn that the server did not say. */

import { say } from "./dom.js";
import { attempt, notice } from "./notices.js";
import { catchUp, goOnWatching, openRun } from "./open.js";
import { blob, call } from "./server.js";
import { set, state } from "./state.js";
import { planeOf, shown, slice, target } from "./viewport.js";

const at = (run, what) => `ibis/runs/${run.id}${what}`;
/** Whether the page shows this run still. */
const isShown = run => state.run?.id === run.id;

/** Changes reach the server one after the other, as the person made them: an undo finds the click before it placed. */
let queue = Promise.resolve();
const inTurn = act => queue = queue.then(() => attempt(act));

/** Take in what came of a change; false when the page shows another run by now. */
async function caughtUp(run) {
  if (isShown(run)) await catchUp();
  return isShown(run);
}

/** Why nobody can change the mask now; empty when one can. */
export function hindrance() {
  if (!state.run) return "Start a run, or choose one: clicks belong to a run.";
  if (state.plane !== target().plane) return `This run works on ${target().plane} slices: change to that plane to click.`;
  if (!state.run.ended) return "The agent works on this run: stop it first, or wait for its end.";
  if (slice()?.locked) return "This slice is locked: unlock it first.";
  return "";
}

/** Start a run with the options of `POST /ibis/runs`, and watch it, unless another image was opened meanwhile. */
export async function start(body) {
  await attempt(async () => {
    const { id } = await call("POST", "ibis/runs", body);
    if (state.image?.id === body.image) await openRun(id, {}, true);
  });
}

/** Place a click at (x, y) of the slice shown, 0..1. */
export async function click(x, y, positive) {
  const why = hindrance();
  if (why) return notice(why, "note");
  if (shown.plane !== state.plane || shown.index !== state.index) return;
  const { width, height } = planeOf();
  if (!(width && height)) return;
  const { run, index, target: number } = state, pending = { run: run.id, target: number, index, x, y, positive };
  set({ pending: [...state.pending, pending], turn: null, playing: false, follow: false });
  await inTurn(async () => {
    await call("POST", at(run, "/clicks"), { target: number, clicks: [{ slice: index, x, y, positive }] });
    if (!await caughtUp(run)) return;
    say(`${positive ? "Positive" : "Negative"} click placed. Mask: ${state.run.slice(number, index)?.area ?? 0} pixels.`);
  });
  set({ pending: state.pending.filter(one => one !== pending) });
}

/** Take the click of a turn back; without one, the person's last on this slice. */
export async function undo(turn = null) {
  const why = hindrance();
  if (why) return notice(why, "note");
  const { run, index, target: number } = state;
  await inTurn(async () => {
    if (!isShown(run)) return notice("Another run was opened before your click could be taken back: it stays.", "note");
    const steps = state.run.slice(number, index)?.steps ?? [];
    const wanted = turn ?? steps.findLast(step => step.actor === "annotator" && !step.undone && step.mask)?.turn;
    if (!wanted) {
      return notice("No click of yours on this slice. Clicks of the agent can be taken back in the list of turns.", "note");
    }
    await call("POST", at(run, "/undo"), { target: number, slice: index, turn: wanted });
    if (!await caughtUp(run)) return;
    set({ turn: null });
    say(`The click of turn ${wanted} was taken back.`);
  });
}

export async function toggleLock() {
  const why = slice()?.locked ? "" : hindrance();
  if (why) return notice(why, "note");
  const { run, index, target: number } = state, locked = !slice()?.locked;
  await inTurn(async () => {
    await call("POST", at(run, "/lock"), { target: number, slices: [index], locked });
    if (await caughtUp(run)) say(locked ? "The slice is locked." : "The slice is unlocked.");
  });
}

/** Let the agent go on where the person's click was the last, or else on the slice shown. */
export async function goOn() {
  const why = touched().length && state.run.ended ? "" : hindrance();
  if (why) return notice(why, "note");
  const { run, index, target: number } = state, turns = target().max_turns;
  await inTurn(async () => {
    if (!isShown(run)) return notice("Another run was opened before the agent went on: it waits.", "note");
    const slices = touched(number);
    await call("POST", at(run, "/continue"), { target: number, slices: slices.length ? slices : [index], turns });
    watchOn(run);
  });
}

/** The slices on which the person's click was the last. */
function touched(number = state.target) {
  return state.run?.slices(number).filter(one => one.touched && !one.locked).map(one => one.index) ?? [];
}

function watchOn(run) {
  if (!isShown(run)) return;
  set({ follow: true, turn: null });
  goOnWatching();
}

export async function stop() {
  const { run } = state;
  if (!run || run.ended) return;
  await attempt(async () => {
    await call("DELETE", at(run, ""));
    run.stopping = true;
    set({ journal: state.journal + 1 });
    if (isShown(run)) say("The run stops at its next turn.");
  });
}

export async function resume() {
  const { run } = state;
  await inTurn(async () => {
    await call("POST", at(run, "/resume"));
    watchOn(run);
  });
}

/** Save the mask as a file. */
export async function download() {
  const { run } = state;
  await attempt(async () => {
    const url = URL.createObjectURL(await blob(at(run, "/mask?format=nii.gz")));
    const link = Object.assign(document.createElement("a"), { href: url, download: `${run.id}.nii.gz` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
}
