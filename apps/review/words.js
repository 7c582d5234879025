/** What things are called. */

export const STOPS = {
  terminated: "The agent judged the mask right and stopped.",
  absent: "The agent found nothing of the target here.",
  max_turns: "The limit of turns was reached.",
  repeated_action: "The agent repeated itself and was stopped.",
  no_progress: "The mask no longer changed, so the agent was stopped.",
  protocol_error: "The agent's replies could not be understood.",
  annotated: "A person placed the last clicks.",
  propagated: "Nobody looked here: the mask was brought from other slices.",
  deadline: "The time budget ran out here.",
  cancelled: "The run was stopped here.",
  failed: "The engine failed on this slice.",
};
export const ACTIONS = {
  positive: "Positive click", negative: "Negative click", terminate: "Terminate", error: "Unusable reply",
};
export const SIGNS = { positive: "+", negative: "−", terminate: "✓", error: "!" };
export const STATUS = {
  queued: "waiting", running: "running", interrupted: "interrupted", cancelled: "stopped", failed: "failed",
  incomplete: "incomplete", complete: "complete",
};

/** Levels of confidence, the worst first: name, upper limit, words. */
const CONFIDENCE = [
  ["level0", 0.5, "below 50 %"], ["level1", 0.7, "50–70 %"], ["level2", 0.85, "70–85 %"], ["level3", Infinity, "from 85 %"],
];
export const LEGEND = [
  ["open", "unfinished"], ...CONFIDENCE.map(([name, , words]) => [name, words]), ["absent", "absent"], ["checked", "checked"],
];

/** How a slice (run.js) is shown in strip and lists. */
export function level(slice) {
  if (!slice) return "none";
  if (slice.playing) return "playing";
  if (slice.locked || slice.corrected) return "checked";
  if (!slice.conclusive) return slice.record ? "open" : "none";
  if (slice.reason === "absent") return "absent";
  if (slice.confidence === null) return slice.mask ? "unknown" : "absent";
  return CONFIDENCE.find(([, limit]) => slice.confidence < limit)[0];
}

/** A sentence of its own. */
export const sentence = text => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

export const percent = value => value === null || value === undefined ? "unknown" : `${Math.round(value * 100)} %`;

export function number(value, digits = 0) {
  const text = value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return text.replace("-", "−");
}

export function areaText(pixels, pixelMm) {
  return pixelMm === null ? `${number(pixels)} px` : `${number(pixels * pixelMm ** 2 / 100, 1)} cm²`;
}

export function timeText(seconds) {
  const date = new Date(seconds * 1000), today = date.toDateString() === new Date().toDateString();
  const time = { hour: "2-digit", minute: "2-digit" };
  return date.toLocaleString("en-GB", today ? time : { day: "numeric", month: "short", ...time });
}

/** What is known of a slice, in a few words. */
export function summary(slice) {
  if (!slice) return "not looked at";
  if (slice.playing) return `turn ${slice.steps.length + 1}`;
  if (!slice.record) return slice.locked ? "locked" : "not finished";
  const state = slice.reason === "absent" && !slice.mask ? "absent" : percent(slice.confidence);
  const extra = [slice.locked && "locked", slice.corrected && "corrected", !slice.conclusive && "not finished"];
  return [state, ...extra].filter(Boolean).join(", ");
}
