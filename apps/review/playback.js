/** Turns in time: stepping through those of a slice, playing them, and going along with the agent while it works. */

import { element, onPress, pressed, usable, write } from "./dom.js";
import { seekTarget } from "./open.js";
import { set, state, watch } from "./state.js";
import { slice, target } from "./viewport.js";

const PLAY_MS = 700;
/** While following, a turn is shown at least so long; the agent may be faster. */
const FOLLOW_MS = 380;
let timer = 0;

/** Show the turn before or after; after the last one what the slice has come to. */
export function stepBy(by) {
  const one = slice();
  if (!one?.steps.length) return;
  const now = state.turn ?? one.steps.length + 1, next = Math.max(1, now + by);
  set({ turn: next > one.steps.length ? null : next, playing: false, follow: false });
}

export function togglePlay() {
  if (!slice()?.steps.length) return;
  set({ playing: !state.playing, follow: false, turn: state.turn ?? 1 });
}

function toggleFollow() {
  set({ follow: !state.follow, playing: false });
}

function beat() {
  timer = 0;
  if (state.playing) play();
  else if (state.follow && state.run) follow();
  if (state.playing || (state.follow && (!state.run?.ended || behind()))) {
    timer = setTimeout(beat, state.playing ? PLAY_MS : FOLLOW_MS);
  } else if (state.follow) {
    set({ follow: false, turn: null });
    seekTarget(state.run);
  }
}

function play() {
  const steps = slice()?.steps.length ?? 0;
  if (state.turn === null || state.turn >= steps) set({ playing: false, turn: null });
  else set({ turn: state.turn + 1 });
}

/** Whether turns of the slice shown have not been seen yet. */
function behind() {
  return state.turn !== null && state.turn < (slice()?.steps.length ?? 0);
}

/** The next turn of the slice shown; when it has had its turns, the slice where the agent is. */
function follow() {
  const { run } = state;
  if (behind()) return set({ turn: state.turn + 1 });
  const { latest } = run;
  if (!latest || slice()?.playing) return;
  const same = latest.target === state.target && latest.index === state.index;
  if (same || run.ended) return;
  set({ target: latest.target, plane: run.targets[latest.target - 1].plane, index: latest.index, turn: 1 });
}

export function setUpPlayback() {
  onPress(element("turn-back"), () => stepBy(-1));
  onPress(element("turn-next"), () => stepBy(1));
  onPress(element("play"), togglePlay);
  onPress(element("follow"), toggleFollow);
  watch(["playing", "follow", "journal"], () => {
    if ((state.playing || state.follow) && !timer) timer = setTimeout(beat, state.playing ? PLAY_MS : FOLLOW_MS);
  });
  watch(["run", "journal", "target", "plane", "index", "turn", "playing", "follow", "image"], () => {
    const steps = slice()?.steps.length ?? 0, none = "No turns on this slice";
    usable(element("turn-back"), steps > 0 && state.turn !== 1, steps ? "This is the first turn" : none);
    usable(element("turn-next"), steps > 0 && state.turn !== null, steps ? "This is the result" : none);
    usable(element("play"), steps > 0, none);
    pressed(element("play"), state.playing);
    write(element("play"), state.playing ? "Pause" : "Play");
    const live = state.run !== null && !state.run.ended;
    element("follow").hidden = !live && !state.follow;
    pressed(element("follow"), state.follow);
  });
  watch(["target"], () => { if (state.run && !target()) set({ target: 1 }); });
}
