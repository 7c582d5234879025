/** The images of the server, and the user's runs. */

import { element, make, pressed, word, write } from "./dom.js";
import { attempt, notice } from "./notices.js";
import { openImage, openRun } from "./open.js";
import { call } from "./server.js";
import { set, state, watch } from "./state.js";
import { STATUS, timeText } from "./words.js";

const LIVELY_MS = 2000, QUIET_MS = 15_000;
/** Lists longer than this are cut: the filter finds the rest. */
const LISTED = 300;
let runs = [], total = 0, scope = false, timer = 0, reachable = true;

function item(text, under, current, act, ...extra) {
  const button = make("button", { type: "button", className: "item" },
    make("span", { className: "name", textContent: text, title: text }), ...extra,
    make("span", { className: "under soft", textContent: under, title: under }));
  if (current) button.setAttribute("aria-current", "true");
  button.addEventListener("click", act);
  return make("li", {}, button);
}

function drawImages() {
  const { images } = state, filter = element("images-filter").value.trim().toLowerCase();
  const fitting = images.filter(image => `${image.name} ${image.id}`.toLowerCase().includes(filter));
  write(element("images-count"), filter ? `${fitting.length} of ${images.length}` : String(images.length));
  const rows = fitting.slice(0, LISTED).map(image => {
    const under = [image.name === image.id ? "" : image.id, image.labelled ? "labelled" : "no final label"];
    const tick = make("span", { className: "tick", textContent: image.labelled ? "✓" : "", aria: { hidden: "true" } });
    const open = () => attempt(() => openImage(image.id));
    return item(image.name, under.filter(Boolean).join(" · "), image.id === state.image?.id, open, tick);
  });
  if (fitting.length > LISTED) rows.push(word("li", "More: type into the filter.", "soft"));
  if (!fitting.length) rows.push(word("li", images.length ? "None fits the filter." : "The server has no images.", "soft"));
  replace(element("images"), rows);
}

function drawRuns() {
  const fitting = scope && state.image ? runs.filter(run => run.image === state.image.id) : runs;
  const rows = fitting.map(run => {
    const status = run.id === state.run?.id ? state.run.status : run.status;
    const pill = make("span", { className: `pill ${status}`, textContent: STATUS[status] });
    const name = run.targets.map(target => target.prompt).join("; ");
    const act = () => attempt(() => openRun(run.id, {}, ["queued", "running"].includes(status)));
    return item(name, `${timeText(run.created)} · ${run.image}`, run.id === state.run?.id, act, pill);
  });
  if (total > runs.length) rows.push(word("li", `${total - runs.length} older ones are not listed.`, "soft"));
  if (!rows.length) rows.push(word("li", runs.length ? "None on this image." : "None yet.", "soft"));
  replace(element("runs"), rows);
}

/** Draw a list anew; the focus stays on the button that has it. */
function replace(list, rows) {
  const at = [...list.children].findIndex(row => row.contains(document.activeElement));
  list.replaceChildren(...rows);
  if (at >= 0) rows[at]?.querySelector("button")?.focus({ preventScroll: true });
}

async function refreshImages() {
  set({ images: (await call("GET", "ibis/images")).images });
}

async function refreshRuns() {
  const [found, jobs] = await Promise.all([call("GET", "ibis/runs?limit=100"), call("GET", "ibis/jobs")]);
  if (JSON.stringify(found.runs) !== JSON.stringify(runs) || found.total !== total) {
    ({ runs, total } = found);
    drawRuns();
  }
  const { running, waiting } = jobs;
  const mine = waiting.find(job => job.mine);
  const others = waiting.length ? `, ${waiting.length} waiting` : "";
  const queue = running.length ? `The server works on ${running.length}${others}` : "";
  write(element("queue"), mine ? `${queue}; yours is number ${mine.position}` : queue);
}

async function beat() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      await refreshRuns();
      if (!reachable) notice("The server is back.", "note");
      reachable = true;
    } catch (error) {
      if (reachable) notice(error.message);
      reachable = false;
    }
  }
  const lively = runs.some(run => ["queued", "running"].includes(run.status)) || !reachable;
  timer = setTimeout(beat, lively ? LIVELY_MS : QUIET_MS);
}

export function setUpLibrary() {
  element("images-filter").addEventListener("input", drawImages);
  element("runs-scope").addEventListener("click", () => {
    scope = !scope;
    pressed(element("runs-scope"), scope);
    drawRuns();
  });
  document.addEventListener("visibilitychange", beat);
  let before = "";
  watch(["image", "images"], drawImages);
  watch(["image"], drawRuns);
  watch(["run", "journal"], () => {
    const now = `${state.run?.id} ${state.run?.status}`;
    if (now === before || !state.run) return;
    before = now;
    drawRuns();
    if (runs.find(run => run.id === state.run.id)?.status !== state.run.status) beat();
  });
  watch(["identity"], () => { beat(); attempt(refreshImages); });
  watch(["gradings"], () => { if (state.gradings) attempt(refreshImages); });
}
