/** The picture: slice, mask and clicks on a canvas; zoom and place. Draws what the state says and changes nothing but that. */

import { EDGES, across } from "./across.js";
import { element, pressed, write } from "./dom.js";
import { paint, windowText } from "./grey.js";
import { set, state, watch } from "./state.js";
import { ACTIONS, summary } from "./words.js";

const canvas = element("canvas"), brush = canvas.getContext("2d", { alpha: false });
const MASK = [72, 199, 142];
const POSITIVE = "#4ade80", NEGATIVE = "#ff8573";

const picture = document.createElement("canvas"), overlay = document.createElement("canvas");
/** What the two hold, to make them only when that changes. */
const holds = { picture: "", values: null, mask: null, outline: null, across: null };
/** Whether the picture is that of the slice that is shown; clicks wait for it. */
export const shown = { plane: "", index: -1 };

export const planeOf = () => state.image?.planes[state.plane] ?? null;
export const target = () => state.run?.targets[state.target - 1] ?? null;
export const slice = () => state.run && state.plane === target()?.plane ? state.run.slice(state.target, state.index) : null;
/** The step that is shown, its place among the slice's steps, or -1. */
export function place() {
  const one = slice();
  if (!one) return -1;
  return state.turn === null ? one.steps.length - 1 : Math.min(state.turn, one.steps.length) - 1;
}

function mask() {
  if (!state.run || !state.overlay) return null;
  const one = slice();
  if (one) return state.turn === null ? one.mask : one.maskAfter(place());
  const wanted = target();
  if (!wanted || state.plane === wanted.plane) return null;
  const name = `${state.run.id} ${state.run.seq} ${state.target} ${state.plane} ${state.index}`;
  if (holds.across?.name !== name) {
    const found = across(state.run.slices(state.target), wanted.plane, state.plane, state.index, state.image.planes);
    holds.across = { name, found };
  }
  return holds.across.found;
}

function preparePicture() {
  const { width, height } = planeOf();
  const values = state.slices.get(state.plane, state.index);
  if (!values) return false;
  const name = `${state.image.content_hash} ${state.plane} ${state.index} ${state.window.low} ${state.window.high}`;
  if (holds.picture !== name) {
    const context = picture.getContext("2d");
    if (picture.width !== width || picture.height !== height || !holds.values) {
      Object.assign(picture, { width, height });
      holds.values = context.createImageData(width, height);
    }
    paint(values, state.window, state.image.stored, new Uint32Array(holds.values.data.buffer));
    context.putImageData(holds.values, 0, 0);
    holds.picture = name;
  }
  Object.assign(shown, { plane: state.plane, index: state.index });
  return true;
}

function prepareMask() {
  const found = mask();
  if (found === holds.mask) return;
  holds.mask = found;
  holds.outline = null;
  if (!found) return;
  Object.assign(overlay, { width: found.width, height: found.height });
  const context = overlay.getContext("2d"), image = context.createImageData(found.width, found.height);
  const colour = new Uint32Array(image.data.buffer), { pixels } = found;
  const [red, green, blue] = MASK, one = (0xff000000 | blue << 16 | green << 8 | red) >>> 0;
  for (let p = 0; p < pixels.length; p++) if (pixels[p]) colour[p] = one;
  context.putImageData(image, 0, 0);
}

/** View pixels to CSS pixels of the canvas: the view's point (x, y) of the state lies in the middle. */
function placement() {
  const { width, height } = planeOf(), room = canvas.getBoundingClientRect();
  const scale = Math.min(room.width / width, room.height / height) * state.zoom;
  return {
    scale, width, height, left: room.width / 2 - state.x * width * scale, top: room.height / 2 - state.y * height * scale,
  };
}

/** The view's point under a place of the window (clientX, clientY), 0..1; null outside the view. */
export function pointAt(clientX, clientY) {
  const { scale, width, height, left, top } = placement(), room = canvas.getBoundingClientRect();
  const x = (clientX - room.left - left) / (width * scale), y = (clientY - room.top - top) / (height * scale);
  return x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y } : null;
}

function draw() {
  if (!planeOf() || !state.slices) return blank();
  const ready = preparePicture();
  prepareMask();
  const ratio = window.devicePixelRatio || 1, room = canvas.getBoundingClientRect();
  const size = { width: Math.round(room.width * ratio), height: Math.round(room.height * ratio) };
  if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
  brush.setTransform(1, 0, 0, 1, 0, 0);
  brush.fillStyle = "#000";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  if (ready) {
    const at = placement();
    brush.setTransform(ratio * at.scale, 0, 0, ratio * at.scale, ratio * at.left, ratio * at.top);
    brush.imageSmoothingEnabled = at.scale * ratio < 6;
    brush.drawImage(picture, 0, 0);
    if (holds.mask && state.outline) outline(at.scale);
    else if (holds.mask) {
      brush.globalAlpha = state.opacity;
      brush.drawImage(overlay, 0, 0);
      brush.globalAlpha = 1;
    }
    brush.setTransform(ratio, 0, 0, ratio, ratio * at.left, ratio * at.top);
    marks(at);
    scaleBar(at.scale);
  } else if (shown.plane === state.plane && holds.values) fade(ratio);
  head(ready);
}

/** The slice before, while the one to show is on its way. */
function fade(ratio) {
  const at = placement();
  brush.setTransform(ratio * at.scale, 0, 0, ratio * at.scale, ratio * at.left, ratio * at.top);
  brush.globalAlpha = 0.4;
  brush.drawImage(picture, 0, 0);
  brush.globalAlpha = 1;
}

function blank() {
  brush.setTransform(1, 0, 0, 1, 0, 0);
  brush.fillStyle = "#000";
  brush.fillRect(0, 0, canvas.width, canvas.height);
}

function outline(scale) {
  holds.outline ??= holds.mask.border;
  brush.lineJoin = "round";
  for (const [colour, width] of [["rgb(0 0 0 / 0.7)", 3.5], [`rgb(${MASK.join(" ")})`, 1.6]]) {
    brush.strokeStyle = colour;
    brush.lineWidth = width / scale;
    brush.stroke(holds.outline);
  }
}

function marks(at) {
  const one = slice(), last = place();
  if (one && state.marks) {
    one.steps.slice(0, last + 1).forEach((step, i) => {
      if (!step.undone || i === last) mark(step.action, String(step.turn), step.actor, i === last, at, step.undone);
    });
  }
  for (const { run, target: number, index, x, y, positive } of state.pending) {
    const here = run === state.run?.id && number === state.target && index === state.index && state.plane === target().plane;
    if (here) mark({ kind: positive ? "positive" : "negative", x, y }, "…", "annotator", true, at, false);
  }
  if (state.crosshair && state.mode !== "browse") crosshair(at);
}

/** A click: a ring (the agent's) or a square (a person's) with its sign and its turn's number, larger for the turn shown. */
function mark({ kind, x, y }, label, actor, chosen, { scale, width, height }, undone) {
  if (kind !== "positive" && kind !== "negative") return;
  const cx = x * width * scale, cy = y * height * scale, radius = chosen ? 10 : 7, arm = radius / 2;
  const shape = new Path2D();
  if (actor === "annotator") shape.rect(cx - radius, cy - radius, 2 * radius, 2 * radius);
  else shape.arc(cx, cy, radius, 0, 2 * Math.PI);
  shape.moveTo(cx - arm, cy);
  shape.lineTo(cx + arm, cy);
  if (kind === "positive") {
    shape.moveTo(cx, cy - arm);
    shape.lineTo(cx, cy + arm);
  }
  brush.globalAlpha = undone ? 0.5 : 1;
  brush.setLineDash(undone ? [3, 3] : []);
  const colour = kind === "positive" ? POSITIVE : NEGATIVE;
  for (const [style, line] of [["rgb(0 0 0 / 0.85)", 5], [chosen ? "#fff" : colour, chosen ? 3.5 : 2], [colour, 2]]) {
    brush.strokeStyle = style;
    brush.lineWidth = line;
    brush.stroke(shape);
  }
  brush.setLineDash([]);
  brush.font = `${chosen ? "700 14px" : "600 12px"} system-ui, "Liberation Sans", sans-serif`;
  brush.textBaseline = "middle";
  brush.lineJoin = "round";
  brush.lineWidth = 3.5;
  brush.strokeStyle = "rgb(0 0 0 / 0.85)";
  brush.strokeText(label, cx + radius + 5, cy);
  brush.fillStyle = chosen ? "#fff" : colour;
  brush.fillText(label, cx + radius + 5, cy);
  brush.globalAlpha = 1;
}

function crosshair({ scale, width, height }) {
  const cx = state.crosshair.x * width * scale, cy = state.crosshair.y * height * scale;
  const path = new Path2D();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    path.moveTo(cx + 4 * dx, cy + 4 * dy);
    path.lineTo(cx + 18 * dx, cy + 18 * dy);
  }
  for (const [style, width] of [["rgb(0 0 0 / 0.85)", 4], [state.mode === "positive" ? POSITIVE : NEGATIVE, 1.8]]) {
    brush.strokeStyle = style;
    brush.lineWidth = width;
    brush.stroke(path);
  }
}

function scaleBar(scale) {
  const mm = planeOf().pixel_mm, bar = element("hud-bar");
  bar.hidden = mm === null;
  write(element("hud-scale"), "");
  if (mm === null) return;
  const length = [200, 100, 50, 20, 10, 5, 2, 1].find(one => one / mm * scale <= canvas.clientWidth / 5) ?? 1;
  write(element("hud-scale"), length < 10 ? `${length} mm` : `${length / 10} cm`);
  bar.style.width = `${length / mm * scale}px`;
}

/** What stands in the corners, and what the picture is for who cannot see it. */
function head(ready) {
  const one = slice(), steps = one?.steps ?? [], at = place(), step = steps[at];
  write(element("hud-slice"), ready ? `Slice ${state.index}` : `Slice ${state.index} is loading …`);
  write(element("hud-state"), one ? `${state.plane}, ${summary(one)}` : state.plane);
  const result = one?.record && !one.playing && state.turn === null;
  write(element("hud-turn"), result ? "Result" : step ? `Turn ${at + 1} of ${steps.length}${one.playing ? " …" : ""}` : "");
  const who = step?.actor === "annotator" ? ", yours" : "", back = step?.undone ? ", taken back" : "";
  const brought = one?.mask ? "brought here" : "no mask";
  const kept = one?.record?.final_turn ? `turn ${one.record.final_turn} of ${steps.length}` : brought;
  write(element("hud-action"), result ? kept : step ? `${ACTIONS[step.action.kind]}${who}${back}` : "");
  write(element("hud-window"), state.image.stored.colour ? "colour" : windowText(state.window));
  const edges = state.image.planar ? "    " : EDGES[state.plane];
  ["top", "bottom", "left", "right"].forEach((side, i) => write(element(`edge-${side}`), edges[i].trim()));
  const thought = element("thought");
  thought.hidden = !step?.thought || !(one.playing || state.turn !== null || state.playing);
  write(thought, thought.hidden ? "" : step.thought);
  const about = one ? `, ${summary(one)}, mask ${one.area} pixels` : "";
  element("stage").setAttribute("aria-label", `Viewport: ${state.plane} slice ${state.index}${about}`);
  element("stage").dataset.size = `${planeOf().width},${planeOf().height}`;
}

export function fit() {
  set({ zoom: 1, x: 0.5, y: 0.5 });
}

/** Zoom by `factor`, keeping the point under (clientX, clientY) where it is. */
export function zoomBy(factor, clientX, clientY) {
  const before = placement(), room = canvas.getBoundingClientRect();
  const dx = clientX - room.left - room.width / 2, dy = clientY - room.top - room.height / 2;
  const zoom = Math.min(40, Math.max(0.5, state.zoom * factor)), after = before.scale * zoom / state.zoom;
  const moved = (middle, d, size) => Math.min(1, Math.max(0, middle + d / (before.scale * size) - d / (after * size)));
  set({ zoom, x: moved(state.x, dx, before.width), y: moved(state.y, dy, before.height) });
}

export function moveBy(dx, dy) {
  const { scale, width, height } = placement();
  const clamp = value => Math.min(1, Math.max(0, value));
  set({ x: clamp(state.x - dx / (width * scale)), y: clamp(state.y - dy / (height * scale)) });
}

export function setUpViewport() {
  const names = [
    "image", "slices", "arrived", "run", "journal", "target", "plane", "index", "turn", "window", "overlay", "outline", "marks",
    "opacity", "zoom", "x", "y", "crosshair", "mode", "pending", "playing",
  ];
  watch(names, draw);
  watch(["image"], () => { element("stage-empty").hidden = state.image !== null; });
  watch(["mode"], () => { element("stage").dataset.mode = state.mode; });
  watch(["overlay", "outline", "marks"], () => {
    for (const name of ["overlay", "outline", "marks"]) pressed(element(name), state[name]);
  });
  new ResizeObserver(draw).observe(canvas);
}
