/** The form that starts a run. */

import { start } from "./actions.js";
import { element, isUsable, make, reveal, usable, write } from "./dom.js";
import { notice } from "./notices.js";
import { call } from "./server.js";
import { set, state, watch } from "./state.js";
import { number, sentence } from "./words.js";

function slicesAsked() {
  const chosen = element("run-slices").value;
  if (chosen === "this") return String(state.index);
  return chosen === "some" ? element("run-some").value.trim() : chosen;
}

function windowAsked() {
  const chosen = element("run-window").value;
  return chosen === "shown" ? `${state.window.low.toFixed(3)},${state.window.high.toFixed(3)}` : chosen;
}

async function submit(event) {
  event.preventDefault();
  if (!isUsable(element("start"))) return;
  const prompt = element("prompt").value.trim();
  if (!prompt) {
    notice("Say what should be segmented, such as liver or left kidney.", "note");
    return element("prompt").focus();
  }
  if (element("run-slices").value === "some" && !slicesAsked()) {
    notice("Say which slices, such as 12, 20-35 or every 4.", "note");
    return element("run-some").focus();
  }
  usable(element("start"), false, "The run is about to start");
  await start({
    image: state.image.id, prompt, slices: slicesAsked(), plane: element("run-plane").value, window: windowAsked(),
    max_turns: Number(element("run-turns").value) || 20,
  });
  usable(element("start"), true);
}

function drawChoices() {
  const { image } = state;
  const windows = [["auto", "as the target needs"], ["shown", "the one shown"]];
  if (image.modality === "CT") windows.push(...image.windows.map(({ name }) => [name, name]));
  const options = (pairs, chosen) =>
    pairs.map(([value, textContent]) => make("option", { value, textContent, selected: value === chosen }));
  element("run-window").replaceChildren(...options(windows, "auto"));
  element("run-plane").replaceChildren(...options(Object.keys(image.planes).map(name => [name, name]), state.plane));
  const { shape, spacing_mm: mm } = image;
  const spacing = mm.map(one => number(one, 1)).join(" × ");
  const size = image.planar ? `${shape[0]} × ${shape[1]} pixels` : `${shape.join(" × ")} voxels of ${spacing} mm`;
  write(element("new-run-image"), `${image.id}: ${image.planar ? "picture" : image.modality}, ${size}`);
  element("warnings").replaceChildren(...image.warnings.map(text => make("li", { textContent: sentence(text) })));
}

/** The structures that the engine names: pressing one adds it to the prompt. */
async function offerStructures() {
  const info = await call("GET", "info/").catch(() => null);
  const names = Object.keys(info?.models?.ibis_agent?.labels ?? {}).filter(name => name !== "target");
  element("known").hidden = !names.length;
  element("structures").replaceChildren(...names.map(name => {
    const chip = make("button", { type: "button", className: "chip", textContent: name });
    chip.addEventListener("click", () => {
      const prompt = element("prompt"), before = prompt.value.split(";").map(one => one.trim()).filter(Boolean);
      const left = before.includes(name) ? before.filter(one => one !== name) : [...before, name];
      prompt.value = left.join("; ");
    });
    return chip;
  }));
}

export function setUpForm() {
  element("new-run").addEventListener("submit", submit);
  element("prompt").addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      element("new-run").requestSubmit();
    }
  });
  element("run-slices").addEventListener("change", () => {
    element("run-some").hidden = element("run-slices").value !== "some";
    if (!element("run-some").hidden) element("run-some").focus();
  });
  element("another").addEventListener("click", () => {
    set({ form: true });
    requestAnimationFrame(() => requestAnimationFrame(() => element("prompt").focus()));
  });
  element("new-run-back").addEventListener("click", () => set({ form: false }));
  watch(["image"], () => { if (state.image) drawChoices(); });
  watch(["plane"], () => { if (state.image && state.form) element("run-plane").value = state.plane; });
  watch(["image", "run", "form"], () => {
    const form = state.image !== null && state.form;
    element("run").hidden = form || state.run === null;
    element("new-run-back").hidden = state.run === null;
    reveal(element("new-run"), form);
    element("panel-empty").hidden = form || state.run !== null;
    if (form && element("known").hidden) offerStructures();
  });
}
