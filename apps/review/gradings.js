/** The end of a run: its masks become the label, or are rejected; and the rewards that come of it. */

import { attempt, notice } from "./notices.js";
import { element, make, onPress, usable, word, write } from "./dom.js";
import { goToSlice } from "./open.js";
import { call } from "./server.js";
import { set, state, watch } from "./state.js";
import { number, percent, timeText } from "./words.js";

const POLL_MS = 1500;
const PATIENCE_MS = 90_000;
const NONE = "This server does not keep trajectories: labels are submitted from 3D Slicer or OHIF.";

/** The reward of a turn, {total, parts}, of the newest grading; null before there is one. */
export function rewardOf(target, index, turn) {
  const newest = state.gradings ? state.gradings.gradings.findLast(one => one.target === target) : null;
  return newest?.slices.find(slice => slice.index === index)?.steps.find(step => step.turn === turn) ?? null;
}

const unknown = error => error.status === 404 || error.status === 405;

async function refresh(run) {
  try {
    const found = await call("GET", `ibis/runs/${run.id}/gradings`);
    if (run === state.run) set({ gradings: found });
  } catch (error) {
    if (!unknown(error)) throw error;
    if (run === state.run) set({ gradings: false });
  }
}

/** Wait until there are more gradings than before, or the label turned out to grade nothing. */
async function untilGraded(run, before) {
  const until = performance.now() + PATIENCE_MS;
  while (run === state.run && performance.now() < until) {
    await refresh(run);
    if ((state.gradings?.gradings?.length ?? 0) > before || state.gradings?.waiting === 0) return;
    await new Promise(resolve => setTimeout(resolve, POLL_MS));
  }
  if (run !== state.run) return;
  notice("The label is stored; its grading takes longer than usual. Open the run again later to see it.", "note");
}

let submitting = false;

async function submit() {
  const { run } = state, before = state.gradings ? state.gradings.gradings.length : 0;
  submitting = true;
  draw();
  const done = await attempt(async () => {
    const answer = await call("PUT", `ibis/runs/${run.id}/label`);
    notice(`The label of ${answer.image} is stored. The agent's turns are graded against it.`, "note");
  });
  submitting = false;
  draw();
  if (done) await attempt(() => untilGraded(run, before));
}

async function reject(event) {
  event.preventDefault();
  const { run } = state, reason = element("reason").value.trim();
  if (state.gradings === false) return notice(NONE, "note");
  if (!reason) {
    notice("Say in a few words why the mask cannot be used.", "note");
    return element("reason").focus();
  }
  await attempt(async () => {
    const body = run.targets.length > 1 ? { reason, target: state.target } : { reason };
    await call("POST", `ibis/runs/${run.id}/reject`, body);
    element("reason").value = "";
    notice("The run is rejected, and the reason is kept with it.", "note");
    await refresh(run);
  });
}

function partsOf(parts) {
  return make("dl", { className: "parts" }, ...Object.entries(parts).flatMap(([name, value]) => [
    word("dt", name.replaceAll("_", " ")), word("dd", number(value, 2))]));
}

function sliceRow(slice) {
  const go = make("button", { type: "button", className: "quiet", textContent: `Slice ${slice.index}` });
  go.addEventListener("click", () => goToSlice(slice.index));
  const told = slice.dropped ? `no reward: ${slice.dropped}` : `IoU ${percent(slice.iou)}, reward ${number(slice.total, 2)}`;
  const facts = word("span", told, "soft");
  const steps = slice.steps.map(step => make("li", {}, `Turn ${step.turn}: ${number(step.total, 2)}`, partsOf(step.parts)));
  const parts = [word("summary", "Parts of the reward"), partsOf(slice.parts), make("ol", { className: "steps" }, ...steps)];
  return make("li", {}, make("div", { className: "row" }, go, facts), make("details", {}, ...parts));
}

function draw() {
  const { gradings, run } = state;
  if (!run) return;
  const kept = gradings !== false, ready = run.ended;
  const { settled, total } = run.progress, missing = total - settled;
  const unfinished = missing > 0 ? ` ${number(missing)} slices have no answer yet: they are left out.` : "";
  const hint = !kept ? NONE : !ready ? "The agent is still at work. You can submit when it has ended, or stop it."
    : `Accepting stores all targets' masks as the image's final label, and grades the agent's turns by them.${unfinished}`;
  write(element("label-hint"), hint);
  usable(element("submit"), kept && ready && !submitting, submitting ? "The label is being stored" : hint);
  write(element("submit"), submitting ? "Submitting …" : "Accept and submit the label");
  element("label-before").hidden = !(kept && state.images.find(image => image.id === run.image)?.labelled);
  usable(element("reject").querySelector("button"), kept, hint);
  const box = element("gradings");
  if (!gradings) return box.replaceChildren();
  const several = run.targets.length > 1;
  const graded = [...gradings.gradings].reverse().map(one => {
    const name = several ? `${run.targets[one.target - 1]?.prompt}: ` : "";
    const facts = [one.annotator, one.source, timeText(typeof one.time === "number" ? one.time : Date.parse(one.time) / 1000)];
    const worst = [...one.slices].sort((a, b) => a.total - b.total);
    return make("section", { className: "grading" }, word("h3", `${name}Dice ${percent(one.dice)}`),
      word("p", facts.filter(Boolean).join(", "), "soft"), make("ol", {}, ...worst.map(sliceRow)));
  });
  const refused = gradings.rejections.map(one => make("p", { className: "grading" }, word("b", "Rejected: "), one.reason));
  const notes = (gradings.notes ?? []).map(note => word("p", note, "grading"));
  box.replaceChildren(...notes, ...refused, ...graded);
}

export function setUpGradings() {
  onPress(element("submit"), submit);
  element("reject").addEventListener("submit", reject);
  watch(["run", "journal", "gradings", "target", "images"], draw);
  watch(["run"], () => { if (state.run) attempt(() => refresh(state.run)); });
}
