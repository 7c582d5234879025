/** A run: what its events add up to, as lib/server/jobs/state.py does it, with a mask for every step. */

import { Mask } from "./mask.js";

const STATUS = {
  queued: "queued", started: "running", interrupted: "interrupted", resumed: "queued", cancelled: "cancelled",
  failed: "failed", continued: "running",
};

/** One slice for one target. */
class Slice {
  constructor(index) {
    this.index = index;
    this.steps = [];
    this.playing = false;
    this.record = null;
    this.conclusive = false;
    this.locked = false;
  }

  /** The mask after step `place`; -1: before the first. Steps that leave the mask as it was keep the one before, steps taken
   *  back count no more. A mask that was brought from other slices was there before the first step. */
  maskAfter(place) {
    for (let i = place; i >= 0; i--) {
      const step = this.steps[i];
      if (step?.mask && (i === place || !step.undone)) return step.mask;
    }
    return this.record?.mask ?? null;
  }

  /** What the slice has come to. */
  get mask() {
    if (!this.record || this.playing) return this.maskAfter(this.steps.length - 1);
    if (this.record.final_turn === null) return this.record.mask;
    return this.steps.find(step => step.turn === this.record.final_turn)?.mask ?? null;
  }

  get confidence() { return this.record?.confidence ?? null; }
  get reason() { return this.playing ? null : this.record?.stop_reason ?? null; }
  get area() { return this.mask?.area ?? 0; }
  /** Whether a person has worked on it. */
  get corrected() { return this.steps.some(step => step.actor === "annotator" && !step.undone); }
  /** Whether a person's click is the last thing that counts: the agent may go on. */
  get touched() { return this.steps.findLast(step => !step.undone)?.actor === "annotator"; }

  begin() {
    this.playing = true;
  }

  step(event) {
    this.steps = this.steps.filter(step => step.turn < event.turn);
    const before = this.steps.findLast(step => step.mask && !step.undone)?.mask;
    const whole = this.steps.length === event.turn - 1;  // else the outcome brings what is missing
    const change = event.change && whole ? Mask.of(event.change) : null;
    const mask = change && (before ? before.xor(change) : change);
    this.steps.push({ ...event, mask, undone: false, support: null });
  }

  settle(record, conclusive) {
    this.playing = false;
    this.conclusive = conclusive;
    this.record = { ...record, mask: record.mask ? Mask.of(record.mask) : null };
    this.steps = record.steps.map(step => ({ ...step, mask: step.mask && Mask.of(step.mask) }));
  }
}

export class Run {
  /** `view`: the run as `GET /ibis/runs/ID` gives it. */
  constructor(view) {
    this.id = view.id;
    this.image = view.image;
    this.targets = view.targets;
    this.created = view.created;
    this.seq = 0;
    this.status = view.status;
    this.answer = view.answer;
    this.notes = view.notes;
    this.error = view.error;
    this.contentHash = "";
    /** Whether a person has asked it to stop. */
    this.stopping = false;
    /** For each target the slices asked for; empty before it has begun. */
    this.planned = [];
    this.found = this.targets.map(() => new Map());
    /** The last step: {target, index, place}. */
    this.latest = null;
  }

  get ended() { return !["queued", "running"].includes(this.status); }
  get prompt() { return this.targets.map(target => target.prompt).join("; "); }

  /** The slice of a target (1 for the first), or null when nothing has happened on it. */
  slice(target, index) {
    return this.found[target - 1]?.get(index) ?? null;
  }

  /** The slices of a target on which something has happened, in order. */
  slices(target) {
    return [...this.found[target - 1]?.values() ?? []].sort((a, b) => a.index - b.index);
  }

  /** How many slices have an answer, and of how many, over all targets. */
  get progress() {
    const settled = this.planned.reduce(
      (sum, indices, i) => sum + indices.filter(index => this.found[i].get(index)?.conclusive).length, 0);
    return { settled, total: this.planned.reduce((sum, indices) => sum + indices.length, 0) };
  }

  end() {
    this.stopping = false;
    for (const slices of this.found) for (const slice of slices.values()) slice.playing = false;
  }

  apply(event) {
    this.seq = event.seq;
    const status = event.kind === "done" ? event.status : STATUS[event.kind];
    if (status) {
      this.status = status;
      this.error = event.detail ?? "";
      this.answer = event.answer ?? this.answer;
      this.notes = event.notes ?? this.notes;
      if (this.ended) this.end();
    }
    if (event.kind === "started") {
      this.planned = event.slices;
      this.contentHash = event.content_hash;
    }
    if (event.slice === undefined) return;
    const slices = this.found[event.target - 1];
    if (!slices.has(event.slice)) slices.set(event.slice, new Slice(event.slice));
    const slice = slices.get(event.slice);
    if (event.kind === "slice_started") slice.begin();
    if (event.kind === "step") slice.step(event);
    if (event.kind === "slice_settled") slice.settle(event.outcome, event.conclusive);
    if (event.kind === "lock" || event.kind === "unlock") slice.locked = event.kind === "lock";
    if (event.kind === "slice_started" || event.kind === "step") {
      this.latest = { target: event.target, index: event.slice, place: slice.steps.length - 1 };
    }
  }
}
