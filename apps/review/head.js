/** The head of a run: what was asked, how far it is, what may be done with it; and the tabs below. */

import { download, resume, stop } from "./actions.js";
import { element, make, onPress, pressed, reveal, usable, write } from "./dom.js";
import { chooseTarget } from "./open.js";
import { set, state, watch } from "./state.js";
import { STATUS, sentence } from "./words.js";

const TABS = ["turns", "worst", "label"];
const RESUMABLE = ["interrupted", "cancelled", "failed", "incomplete"];

function draw() {
  const { run } = state;
  write(element("where"), state.image ? `${run ? `${run.prompt} on ` : ""}${state.image.id}` : "");
  if (!run) return;
  write(element("run-title"), run.targets[state.target - 1]?.prompt ?? "");
  const status = element("run-status");
  write(status, STATUS[run.status]);
  status.className = `pill ${run.status}`;
  const { settled, total } = run.progress, progress = element("progress");
  progress.hidden = run.status === "complete" || !total;
  progress.setAttribute("aria-valuemax", String(total));
  progress.setAttribute("aria-valuenow", String(settled));
  progress.firstChild.style.width = `${total ? 100 * settled / total : 0}%`;
  const going = run.status === "queued" ? "Waiting for a free place on the server." : `${settled} of ${total} slices`;
  const answer = run.error && run.status !== "cancelled" ? run.error : run.ended ? run.answer : going;
  write(element("run-answer"), [answer, ...run.notes].filter(Boolean).map(sentence).join(" "));
  element("run-answer").classList.toggle("bad", run.status === "failed");
  reveal(element("stop"), !run.ended);
  usable(element("stop"), !run.stopping, "The run stops at its next turn");
  write(element("stop"), run.stopping ? "Stopping …" : "Stop");
  reveal(element("resume"), RESUMABLE.includes(run.status));
  element("trace").href = `../ibis/runs/${run.id}/trace.html?target=${state.target}`;
  element("trace").hidden = !run.ended || run.status === "failed";
  usable(element("download"), run.planned.length > 0, "There is no mask yet");
}

function drawTargets() {
  const { run } = state, box = element("targets");
  box.hidden = !run || run.targets.length < 2;
  if (!run || box.hidden) return;
  const buttons = run.targets.map((target, i) => {
    const button = make("button", { type: "button", textContent: target.prompt });
    pressed(button, i + 1 === state.target);
    button.addEventListener("click", () => chooseTarget(i + 1));
    return button;
  });
  const focus = [...box.children].indexOf(document.activeElement);
  box.replaceChildren(...buttons);
  if (focus >= 0) buttons[focus]?.focus();
}

function drawTabs() {
  for (const name of TABS) {
    const tab = element(`tab-${name}`), chosen = state.tab === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    element(`page-${name}`).hidden = !chosen;
  }
}

export function setUpHead() {
  drawTabs();
  onPress(element("stop"), stop);
  onPress(element("resume"), resume);
  onPress(element("download"), download);
  TABS.forEach((name, i) => {
    const tab = element(`tab-${name}`);
    tab.addEventListener("click", () => set({ tab: name }));
    tab.addEventListener("keydown", event => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      const next = TABS[(i + by + TABS.length) % TABS.length];
      set({ tab: next });
      element(`tab-${next}`).focus();
    });
  });
  watch(["tab"], drawTabs);
  watch(["run", "target"], drawTargets);
  watch(["run", "journal", "target", "image"], draw);
}
