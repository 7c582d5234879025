/** The address of what is shown: `#run=ID&target=1&plane=axial&slice=42&turn=3`, or `#image=ID&plane=axial&slice=42`. */

import { element, say } from "./dom.js";
import { attempt, notice } from "./notices.js";
import { goTo, openImage, openRun } from "./open.js";
import { set, state, watch } from "./state.js";

const WRITE_MS = 250;
let timer = 0;
let written = "";

function words() {
  if (!state.image && !state.run) return "";
  const words = new URLSearchParams(state.run ? { run: state.run.id, target: state.target } : { image: state.image.id });
  words.set("plane", state.plane);
  words.set("slice", state.index);
  if (state.run && state.turn !== null) words.set("turn", state.turn);
  return `#${words}`;
}

function write() {
  const now = words();
  if (!now || now === written) return;
  const name = text => new URLSearchParams(text.slice(1)).get("run") ?? new URLSearchParams(text.slice(1)).get("image");
  if (written && name(now) !== name(written)) history.pushState(null, "", now);
  else history.replaceState(null, "", now);
  written = now;
}

/** Show what the address says. */
export async function readLink() {
  const found = new URLSearchParams(location.hash.slice(1));
  const whole = name => /^\d+$/.test(found.get(name) ?? "") ? Number(found.get(name)) : undefined;
  const plane = ["axial", "coronal", "sagittal"].includes(found.get("plane")) ? found.get("plane") : undefined;
  const at = { target: whole("target") || 1, plane, index: whole("slice"), turn: whole("turn") || null };
  written = location.hash;
  const run = found.get("run"), image = found.get("image");
  if (run && run === state.run?.id) {
    const target = Math.min(at.target, state.run.targets.length);
    set({ target, ...(state.image?.planes[plane] ? { plane } : {}) });
    goTo(at.index ?? state.index, at.turn);
  } else if (run) {
    await attempt(() => openRun(run, at));
  } else if (image) {
    set({ ...(plane ? { plane } : {}), ...(at.index === undefined ? {} : { index: at.index }) });
    await attempt(() => openImage(image, at.index !== undefined));
  }
}

export function setUpLink() {
  watch(["image", "run", "target", "plane", "index", "turn"], () => {
    clearTimeout(timer);
    timer = setTimeout(write, WRITE_MS);
    const name = state.run ? `${state.run.prompt} on ${state.run.image}` : state.image?.id;
    document.title = name ? `${name} - IBIS Label review` : "IBIS Label review";
  });
  addEventListener("hashchange", readLink);
  element("link").addEventListener("click", async () => {
    write();
    try {
      await navigator.clipboard.writeText(location.href);
      say("The link was copied.");
      notice("The link to this run, slice and turn was copied.", "note");
    } catch {
      notice("The browser does not let this page copy: the address bar holds the link to this run, slice and turn.", "note");
    }
  });
}
