/** Mouse and pen on the picture. */

import { click } from "./actions.js";
import { element, write } from "./dom.js";
import { dragged } from "./grey.js";
import { keepFree } from "./notices.js";
import { goTo } from "./open.js";
import { set, state } from "./state.js";
import { moveBy, planeOf, pointAt, shown, zoomBy } from "./viewport.js";

const CLICK_PX = 4;
const stage = element("stage");
/** What is being dragged: {button, x, y, far, range}. */
let drag = null;
let wheel = 0;

function wheeled(event) {
  if (!planeOf()) return;
  event.preventDefault();
  const pixels = event.deltaMode ? event.deltaY * 40 : event.deltaY;
  if (event.ctrlKey || event.metaKey) return zoomBy(Math.exp(-pixels * 0.002), event.clientX, event.clientY);
  wheel += pixels;
  const steps = Math.trunc(wheel / 40);
  if (!steps) return;
  wheel -= steps * 40;
  set({ follow: false, playing: false });
  goTo(state.index + Math.sign(steps));
}

/** From the lowest to the highest value that is on the slice. */
function range() {
  const values = state.slices.get(shown.plane, shown.index);
  let low = Infinity, high = -Infinity;
  for (let p = 0; p < values.length; p += 7) {
    if (values[p] < low) low = values[p];
    if (values[p] > high) high = values[p];
  }
  return Math.max(1e-6, (high - low) * state.image.stored.slope);
}

function down(event) {
  if (!planeOf() || drag || shown.index < 0) return;
  stage.focus({ preventScroll: true });
  const windows = event.button === 2 && !state.image.stored.colour && state.slices.has(shown.plane, shown.index);
  drag = { button: event.button, x: event.clientX, y: event.clientY, far: false, range: windows ? range() : 0 };
  stage.setPointerCapture(event.pointerId);
}

function move(event) {
  readOut(event);
  const room = stage.getBoundingClientRect();
  keepFree(event.clientY < room.top + room.height / 2);
  if (!drag) return;
  const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
  if (!drag.far && Math.hypot(dx, dy) < CLICK_PX) return;
  drag.far = true;
  if (drag.button === 2) {
    if (drag.range) set({ window: dragged(state.window, dx, dy, drag.range) });
  } else if (drag.button === 1 || state.mode === "browse") moveBy(dx, dy);
  drag.x = event.clientX;
  drag.y = event.clientY;
}

function up(event) {
  const before = drag;
  drag = null;
  if (!before || before.far || before.button !== 0) return;
  const point = pointAt(event.clientX, event.clientY), reversed = event.shiftKey || event.altKey;
  if (point && (state.mode !== "browse" || reversed)) click(point.x, point.y, state.mode === "positive" && !reversed);
}

/** Value and place under the pointer. */
function readOut(event) {
  const point = planeOf() && state.slices && shown.index === state.index ? pointAt(event.clientX, event.clientY) : null;
  const values = point && state.slices.has(state.plane, state.index) ? state.slices.get(state.plane, state.index) : null;
  if (!values) return write(element("hud-point"), "");
  const { width, height } = planeOf(), column = Math.floor(point.x * width), row = Math.floor(point.y * height);
  const { colour, slope, intercept } = state.image.stored;
  const at = row * width + column;
  const grey = Number((values[at] * slope + intercept).toPrecision(4));
  const value = colour ? [0, 1, 2].map(i => values[3 * at + i]).join(" ") : grey;
  const unit = state.image.modality === "CT" ? " HU" : "";
  write(element("hud-point"), `${String(value).replace("-", "−")}${unit} at ${column}, ${row}`);
}

export function setUpPointer() {
  stage.addEventListener("wheel", wheeled, { passive: false });
  stage.addEventListener("pointerdown", down);
  stage.addEventListener("pointermove", move);
  stage.addEventListener("pointerup", up);
  stage.addEventListener("pointercancel", () => { drag = null; });
  stage.addEventListener("pointerleave", () => write(element("hud-point"), ""));
  stage.addEventListener("contextmenu", event => event.preventDefault());
}
