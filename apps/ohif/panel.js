/** The agent's panel: prompt, run, watch, stop, submit. One for each time that a study is opened; OHIF shows and hides it. */

import { decode, encode } from "./nrrd.js";
import * as server from "./server.js";

const STATES = {
  queued: "The label is stored and on its way to the PACS.",
  delivered: "The label is stored, and in the PACS.",
  refused: "The label is stored here, but the PACS does not take it",
  local: "The label is stored here",
};
const FORM = `
  <form>
    <h2>IBIS agent</h2>
    <label for="ibis-prompt">What to segment</label>
    <input id="ibis-prompt" autocomplete="off" maxlength="2000" placeholder="liver; spleen" required>
    <div class="ibis-row">
      <div>
        <label for="ibis-slices">Look at</label>
        <select id="ibis-slices">
          <option value="all">every slice</option>
          <option value="auto">key slices (faster)</option>
        </select>
      </div>
      <div>
        <label for="ibis-user">Your name</label>
        <input id="ibis-user" autocomplete="off" maxlength="128" placeholder="anonymous">
      </div>
    </div>
    <div class="ibis-row ibis-buttons">
      <button id="ibis-run" type="submit">Run</button>
      <button id="ibis-stop" type="button" disabled>Stop</button>
      <button id="ibis-submit" type="button">Submit label</button>
    </div>
    <progress id="ibis-progress" hidden aria-label="slices that are finished"></progress>
    <p id="ibis-status" role="status"></p>
    <a id="ibis-review" target="_blank" rel="noopener" hidden>Open this run in the review page</a>
  </form>`;

export class Panel {
  constructor(study) {
    this.study = study;
    this.key = "";
    this.root = document.createElement("section");
    this.root.className = "ibis-agent";
    this.root.setAttribute("aria-label", "IBIS agent");
    this.root.innerHTML = FORM;
    if (!document.getElementById("ibis-style")) {
      const href = new URL("panel.css", import.meta.url).href;
      document.head.append(Object.assign(document.createElement("link"), { id: "ibis-style", rel: "stylesheet", href }));
    }
    this.part("user").value = server.identity.user;
    this.part("user").addEventListener("change", event => { server.identity.user = event.target.value.trim(); });
    this.root.querySelector("form").addEventListener("submit", event => {
      event.preventDefault();
      this.attempt(() => this.run());
    });
    this.part("stop").addEventListener("click", () => this.attempt(() => server.cancel(this.key)));
    this.part("submit").addEventListener("click", () => this.attempt(() => this.submit()));
  }

  part(name) {
    return this.root.querySelector(`#ibis-${name}`);
  }

  say(text, wrong = false) {
    this.part("status").textContent = text;
    this.part("status").classList.toggle("ibis-wrong", wrong);
  }

  async attempt(work) {
    try {
      await work();
    } catch (error) {
      this.say(error.message, true);
    }
  }

  busy(running) {
    this.part("run").disabled = this.part("submit").disabled = running;
    this.part("stop").disabled = !running;
    this.part("progress").hidden = !running;
  }

  async run() {
    const series = this.study.series;
    this.busy(true);
    try {
      this.say("Asking the server");
      const { labels, models } = await server.info();
      await this.study.prepare([...labels, ...Object.values(models).flatMap(model => Object.keys(model.labels))]);
      this.key = await server.run(series, this.part("prompt").value, this.part("slices").value);
      this.part("review").href = `/ibis/#run=${this.key}`;
      this.part("review").hidden = false;
      this.say("Waiting for the agent");
      await this.watch();
      const run = await server.shown(this.key);
      if (run.status === "failed") throw new Error(run.error);
      if (this.study.series !== series) throw new Error("Another series is on the screen now: the mask is not drawn on it.");
      this.study.draw(await decode(await server.mask(this.key)), run.targets);
      this.say(run.status === "cancelled" ? "Stopped; what was found so far is drawn." : run.answer);
    } finally {
      this.busy(false);
    }
  }

  async watch() {
    const progress = this.part("progress");
    const settled = new Set();
    progress.removeAttribute("value");
    await server.follow(this.key, event => {
      if (event.kind === "started") progress.max = event.slices.flat().length || 1;
      if (event.kind === "step") this.say(`Slice ${event.slice}, turn ${event.turn}: ${event.thought}`);
      if (event.kind === "slice_settled") progress.value = settled.add(`${event.target} ${event.slice}`).size;
    });
  }

  async submit() {
    const series = this.study.series;
    const { grid, data, names } = this.study.label();
    this.busy(true);
    this.part("stop").disabled = true;
    try {
      this.say("Sending the label");
      const { pacs } = await server.submit(series, await encode(grid, data), names);
      const what = names.map(({ name }) => name).join(", ") || "nothing labelled";
      const where = STATES[pacs?.state] ?? "The label is stored.";
      const why = pacs?.error ? `: ${pacs.error}` : "";
      this.say(`${where}${why} (${what})`, pacs?.state === "refused");
    } finally {
      this.busy(false);
    }
  }
}
