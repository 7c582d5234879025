/** What a person does with a run. Every change comes back as the run's events; nothing is drawn that the server did not say. */

import { say } from "./dom.js";
import { attempt, notice } from "./notices.js";
import { catchUp, goOnWatching, openRun } from "./open.js";
import { blob, call } from "./server.js";
import { set, state } from "./state.js";
import { planeOf, shown, slice, target } from "./viewport.js";

const at = what => `ibis/runs/${state.run.id}${what}`;

/** Why nobody can change the mask now; empty when one can. */
export function hindrance() {
  if (!state.run) return "Start a run, or choose one: clicks belong to a run.";
  if (state.plane !== target().plane) return `This run works on ${target().plane} slices: change to that plane to click.`;
  if (!state.run.ended) return "The agent works on this run: stop it first, or wait for its end.";
  if (slice()?.locked) return "This slice is locked: unlock it first.";
  return "";
}

/** Start a run with the options of `POST /ibis/runs`, and watch it. */
export async function start(body) {
  await attempt(async () => {
    const { id } = await call("POST", "ibis/runs", body);
    await openRun(id, {}, true);
  });
}

/** Place a click at (x, y) of the slice shown, 0..1. */
export async function click(x, y, positive) {
  const why = hindrance();
  if (why) return notice(why, "note");
  if (shown.plane !== state.plane || shown.index !== state.index || state.pending) return;
  const { width, height } = planeOf();
  if (!(width && height)) return;
  const index = state.index, number = state.target;
  set({ pending: { target: number, index, x, y, positive }, turn: null, playing: false, follow: false });
  await attempt(async () => {
    await call("POST", at("/clicks"), { target: number, clicks: [{ slice: index, x, y, positive }] });
    await catchUp();
    say(`${positive ? "Positive" : "Negative"} click placed. Mask: ${state.run.slice(number, index)?.area ?? 0} pixels.`);
  });
  set({ pending: null });
}

/** Take the click of a turn back; without one, the person's last on this slice. */
export async function undo(turn = null) {
  const why = hindrance();
  if (why) return notice(why, "note");
  const one = slice(), own = one?.steps.findLast(step => step.actor === "annotator" && !step.undone && step.mask);
  const wanted = turn ?? own?.turn;
  if (!wanted) {
    return notice("No click of yours on this slice. Clicks of the agent can be taken back in the list of turns.", "note");
  }
  await attempt(async () => {
    await call("POST", at("/undo"), { target: state.target, slice: state.index, turn: wanted });
    await catchUp();
    set({ turn: null });
    say(`The click of turn ${wanted} was taken back.`);
  });
}

export async function toggleLock() {
  const locked = slice()?.locked ?? false;
  const why = locked ? "" : hindrance();
  if (why) return notice(why, "note");
  await attempt(async () => {
    await call("POST", at("/lock"), { target: state.target, slices: [state.index], locked: !locked });
    await catchUp();
    say(locked ? "The slice is unlocked." : "The slice is locked.");
  });
}

/** Let the agent go on where the person's click was the last, or else on the slice shown. */
export async function goOn() {
  const touched = state.run?.slices(state.target).filter(one => one.touched && !one.locked).map(one => one.index) ?? [];
  const why = touched.length && state.run.ended ? "" : hindrance();
  if (why) return notice(why, "note");
  await attempt(async () => {
    const slices = touched.length ? touched : [state.index];
    await call("POST", at("/continue"), { target: state.target, slices, turns: target().max_turns });
    set({ follow: true, turn: null });
    goOnWatching();
  });
}

export async function stop() {
  if (!state.run || state.run.ended) return;
  await attempt(async () => {
    await call("DELETE", at(""));
    state.run.stopping = true;
    set({ journal: state.journal + 1 });
    say("The run stops at its next turn.");
  });
}

export async function resume() {
  await attempt(async () => {
    await call("POST", at("/resume"));
    set({ follow: true, turn: null });
    goOnWatching();
  });
}

/** Save the mask as a file. */
export async function download() {
  await attempt(async () => {
    const url = URL.createObjectURL(await blob(at("/mask?format=nii.gz")));
    const link = Object.assign(document.createElement("a"), { href: url, download: `${state.run.id}.nii.gz` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
}
