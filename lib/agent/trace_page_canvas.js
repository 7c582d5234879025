"use strict";
const element = id => document.getElementById(id);
const page = JSON.parse(element("run").textContent);
const trace = page.trace;
const slices = [...trace.slices].sort((a, b) => a.index - b.index);
const [viewWidth, viewHeight] = trace.view_size;
const KEPT_PICTURES = 32;

/** What is shown: the strip's order, a place in it, a step of that slice; and how. */
const state = {
  order: slices, place: 0, step: 0, overlay: true, outline: false, marks: true, zoom: 1, x: 0.5, y: 0.5, timer: 0,
};
const current = () => state.order[state.place];

// Masks: COCO run-length encoding.

/** Run lengths, background first, down the columns (pycocotools maskApi.c, rleFrString). */
function runs(counts) {
  const lengths = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, chunk;
    do {
      chunk = counts.charCodeAt(at++) - 48;
      value |= (chunk & 31) << shift;
      shift += 5;
    } while (chunk & 32);
    if (chunk & 16 && shift < 32) value |= -1 << shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    lengths.push(value);
  }
  return lengths;
}
const area = mask => mask ? runs(mask.counts).reduce((sum, length, i) => i % 2 ? sum + length : sum, 0) : 0;
/** 0 or 1 per pixel along the rows. */
function decode(mask) {
  const [height, width] = mask.size;
  const pixels = new Uint8Array(height * width);
  let at = 0;
  runs(mask.counts).forEach((length, i) => {
    if (i % 2) for (let p = at; p < at + length; p++) pixels[(p % height) * width + Math.floor(p / height)] = 1;
    at += length;
  });
  return pixels;
}
/** The mask after a step: terminate and unusable replies leave the one before, steps taken back count no more. A mask that was
 *  brought from other slices was there before the first step. */
function maskAfter(slice, step) {
  for (let i = step; i >= 0; i--) {
    const one = slice.steps[i];
    if (one?.mask && (i === step || !one.undone)) return one.mask;
  }
  return slice.mask ?? slice.given?.mask ?? null;
}
/** Which step's mask was kept, -1 if none. */
const keptStep = slice => slice.steps.findIndex(step => step.turn === slice.final_turn);
function finalMask(slice) {
  if (slice.stop_reason === "absent") return null;
  return slice.final_turn === null ? slice.mask ?? null : maskAfter(slice, keptStep(slice));
}
/** As lib/imaging/overlays.py: image * (1 - alpha) + colour * alpha on mask pixels, rounded or truncated. */
function blend(image, pixels, overlay) {
  const half = overlay.rounded ? 0.5 : 0;
  const painted = new ImageData(new Uint8ClampedArray(image.data), image.width, image.height);
  for (let p = 0; p < pixels.length; p++) {
    if (!pixels[p]) continue;
    for (let channel = 0; channel < 3; channel++) {
      const value = image.data[4 * p + channel] * (1 - overlay.alpha) + overlay.colour[channel] * overlay.alpha + half;
      painted.data[4 * p + channel] = Math.trunc(value);
    }
  }
  return painted;
}
/** The sides of mask pixels that face the background. */
function border(pixels, width, height) {
  const path = new Path2D();
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x] === 1;
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (inside(x - 1, y) !== inside(x, y)) { path.moveTo(x, y); path.lineTo(x, y + 1); }
      if (inside(x, y - 1) !== inside(x, y)) { path.moveTo(x, y); path.lineTo(x + 1, y); }
    }
  }
  return path;
}

// The picture.

const canvas = element("canvas"), brush = canvas.getContext("2d");
const composed = document.createElement("canvas");
composed.width = viewWidth;
composed.height = viewHeight;
const pictures = new Map();
/** A slice's pixels, kept for the last few slices. */
function picture(index) {
  const kept = pictures.get(index) ?? load(index);
  pictures.delete(index);
  pictures.set(index, kept);
  if (pictures.size > KEPT_PICTURES) pictures.delete(pictures.keys().next().value);
  return kept;
}
async function load(index) {
  const image = new Image();
  image.src = page.pictures[index];
  await image.decode();
  const sheet = document.createElement("canvas");
  sheet.width = viewWidth;
  sheet.height = viewHeight;
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, viewWidth, viewHeight);
}

let outlinePath = null;

async function compose() {
  const slice = current(), step = state.step;
  const image = await picture(slice.index);
  if (slice !== current() || step !== state.step) return;
  const mask = state.overlay ? maskAfter(slice, step) : null;
  const pixels = mask && decode(mask);
  outlinePath = pixels && state.outline ? border(pixels, viewWidth, viewHeight) : null;
  composed.getContext("2d").putImageData(pixels && !state.outline ? blend(image, pixels, trace.overlay) : image, 0, 0);
  paint();
  for (const near of [state.place + 1, state.place - 1]) if (state.order[near]) picture(state.order[near].index);
}
/** View pixels to CSS pixels of the canvas: the view's point (x, y) of the state lies in the middle. */
function placement() {
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const scale = Math.min(width / viewWidth, height / viewHeight) * state.zoom;
  return { scale, left: width / 2 - state.x * viewWidth * scale, top: height / 2 - state.y * viewHeight * scale };
}
function paint() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const { scale, left, top } = placement();
  brush.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * left, ratio * top);
  brush.imageSmoothingQuality = "high";
  brush.drawImage(composed, 0, 0);
  if (outlinePath) {
    for (const [colour, width] of [["rgb(0 0 0 / 0.7)", 3.5], [vivid(trace.overlay.colour), 1.6]]) {
      brush.strokeStyle = colour;
      brush.lineWidth = width / scale;
      brush.stroke(outlinePath);
    }
  }
  if (state.marks) {
    brush.setTransform(ratio, 0, 0, ratio, ratio * left, ratio * top);
    current().steps.slice(0, state.step + 1).forEach((step, i) => mark(step, i === state.step, scale));
  }
  scaleBar(scale);
}
const vivid = colour => `rgb(${colour.map(c => Math.round(c * 255 / Math.max(...colour, 1))).join(" ")})`;
/** A click: a ring with its sign and its turn's number, larger where it is the chosen turn's. */
function mark(step, chosen, scale) {
  const { kind, x, y } = step.action;
  if (!["positive", "negative"].includes(kind)) return;
  const cx = x * viewWidth * scale, cy = y * viewHeight * scale, radius = chosen ? 10 : 7, arm = radius / 2;
  const colour = kind === "positive" ? "#4ade80" : "#ff7b6b";
  const shape = new Path2D();
  shape.arc(cx, cy, radius, 0, 2 * Math.PI);
  shape.moveTo(cx - arm, cy);
  shape.lineTo(cx + arm, cy);
  if (kind === "positive") {
    shape.moveTo(cx, cy - arm);
    shape.lineTo(cx, cy + arm);
  }
  const halo = new Path2D();
  if (chosen) halo.arc(cx, cy, radius + 4, 0, 2 * Math.PI);
  for (const [path, style, width] of [[halo, "#fff", 1.5], [shape, "rgb(0 0 0 / 0.8)", 4.5], [shape, colour, 2]]) {
    brush.strokeStyle = style;
    brush.lineWidth = width;
    brush.stroke(path);
  }
  brush.font = `${chosen ? "700 14px" : "600 12px"} system-ui, "Liberation Sans", sans-serif`;
  brush.textBaseline = "middle";
  brush.lineJoin = "round";
  brush.lineWidth = 3.5;
  brush.strokeStyle = "rgb(0 0 0 / 0.85)";
  const label = String(step.turn), beside = cx + radius + (chosen ? 8 : 4);
  brush.strokeText(label, beside, cy);
  brush.fillStyle = chosen ? "#fff" : colour;
  brush.fillText(label, beside, cy);
}
function scaleBar(scale) {
  if (page.pixel_mm === null) return;
  const room = canvas.clientWidth / 4;
  const length = [200, 100, 50, 20, 10, 5, 2, 1].find(mm => mm / page.pixel_mm * scale <= room) ?? 1;
  element("hud-scale").textContent = length < 10 ? `${length} mm` : `${length / 10} cm`;
  element("hud-bar").style.width = `${length / page.pixel_mm * scale}px`;
  element("hud-bar").hidden = false;
}
