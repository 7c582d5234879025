const PLAY_MS = 750, PLAY_ABSENT_MS = 180, BAR_PX = 64;
const STOPS = {
  terminated: "The agent judged the mask right and stopped.",
  absent: "The agent found nothing of the target here.",
  max_turns: `The limit of ${trace.max_turns} turns was reached.`,
  repeated_action: "The agent repeated itself and was stopped.",
  no_progress: "The mask no longer changed, so the agent was stopped.",
  protocol_error: "The agent's replies could not be understood.",
  annotated: "A person placed the clicks and asked for no more.",
  propagated: "Nobody looked here: the mask was brought from other slices.",
  deadline: "The time budget ran out here.",
  cancelled: "The run was cancelled here.",
  failed: "The engine failed on this slice.",
};
const ACTIONS = { positive: "Positive click", negative: "Negative click", terminate: "Terminate", error: "Unusable reply" };
const SIGNS = { positive: "+", negative: "−", terminate: "✓", error: "!" };
const LEVELS = [
  [0.5, "level0", "below 50 %"], [0.7, "level1", "50–70 %"], [0.85, "level2", "70–85 %"], [Infinity, "level3", "85 % or more"],
];

// Words and numbers. Data reaches the document through textContent only.

function make(tag, className = "", text = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== "") node.textContent = text;
  node.append(...children);
  return node;
}
const isNumber = value => typeof value === "number";
function number(value, digits = 0) {
  const style = { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "negative" };
  const text = value.toLocaleString("en-GB", style);
  return text.replace("-", "−");
}
const percent = value => isNumber(value) ? `${Math.round(value * 100)} %` : "unknown";
const seconds = value => `${number(value, value < 10 ? 2 : 1)} s`;
function areaText(pixels) {
  if (page.pixel_mm === null) return `${number(pixels)} px`;
  return `${number(pixels)} px (${number(pixels * page.pixel_mm ** 2 / 100, 1)} cm²)`;
}
function level(slice) {
  if (slice.stop_reason === "absent") return "absent";
  return isNumber(slice.confidence) ? LEVELS.find(([limit]) => slice.confidence < limit)[1] : "unknown";
}
function rewardText({ total, parts }) {
  const named = Object.entries(parts).map(([name, value]) => `${name} ${number(value, 2)}`).join(", ");
  return named ? `${number(total, 2)} (${named})` : number(total, 2);
}
const stopText = slice => STOPS[slice.stop_reason] ?? slice.stop_reason;
const stoppedEarly = slice => !["terminated", "absent", "annotated", "propagated"].includes(slice.stop_reason);
const pointText = action => `${action.x.toFixed(4)}, ${action.y.toFixed(4)}`;

// The panel beside it.

function confidence(slice) {
  const known = isNumber(slice.confidence) || slice.stop_reason !== "absent";
  const text = make("span", "", known ? `Confidence ${percent(slice.confidence)}` : "Absent");
  return make("span", `confidence ${level(slice)}`, "", make("span", "swatch"), text);
}
function summarise(slice) {
  const summary = element("summary");
  summary.replaceChildren(make("div", "row", "", make("h2", "", `Slice ${slice.index}`), confidence(slice)));
  summary.append(make("p", stoppedEarly(slice) ? "early" : "", stopText(slice)));
  if (slice.stop_detail) summary.append(make("p", "detail", slice.stop_detail));
  const mask = finalMask(slice);
  const from = slice.final_turn === null ? "brought here" : `of turn ${slice.final_turn}`;
  const kept = mask ? `Kept: the mask ${from}, ${areaText(area(mask))}` : "Kept: no mask";
  summary.append(make("p", "soft", mask && slice.chosen_because ? `${kept} – ${slice.chosen_because}.` : `${kept}.`));
  for (const grade of slice.grades ?? []) {
    const worth = grade.dropped ? `no reward: ${grade.dropped}` : `Dice ${number(grade.dice, 3)}, reward ${rewardText(grade)}`;
    summary.append(make("p", "soft", `Against the label of ${grade.by}: ${worth}.`));
  }
}
function turnItem(slice, step, i) {
  const kind = step.action.kind;
  const item = make("li");
  const head = make("button", "turn", "", make("span", `sign ${kind}`, SIGNS[kind]));
  head.append(make("span", "", `${step.turn}. ${ACTIONS[kind]}`));
  head.type = "button";
  if (step.actor !== "agent") head.append(make("span", "tag", step.actor));
  if (step.undone) head.append(make("span", "tag", "taken back"));
  if (step.turn === slice.final_turn) head.append(make("span", "tag", "kept"));
  item.append(head);
  if (step.thought) item.append(make("p", "thought", step.thought));
  const answer = step.answer || (kind === "terminate" && step.action.detail);
  if (answer) item.append(make("p", "thought", `Answer: ${answer}`));
  if (kind === "error") item.append(make("p", "detail", step.action.detail));
  const after = area(maskAfter(slice, i)), change = after - (i ? area(maskAfter(slice, i - 1)) : 0);
  item.dataset.area = after;
  const measures = make("p", "measures");
  const measure = (name, value, title) => {
    const part = make("span", "", `${name} `, make("b", "", value));
    part.title = title;
    measures.append(part);
  };
  if (isNumber(step.action.x)) measure("At", pointText(step.action), "x and y of the click, from the top left corner");
  if (isNumber(step.support)) measure("Support", percent(step.support), "How well the policy, looking next, thought it fits");
  if (isNumber(step.score)) measure("Score", percent(step.score), "The segmenter's own estimate of the new mask");
  for (const grade of step.grades ?? []) {
    measure("IoU", percent(grade.iou), `Of the mask after this turn with the label of ${grade.by}`);
    measure("Reward", rewardText(grade), `Against the label of ${grade.by}: its parts, and their weighted sum`);
  }
  measure("Area", step.mask ? areaText(after) : `${areaText(after)}, unchanged`, "Mask after this turn");
  if (step.mask && i) measure("Change", `${change > 0 ? "+" : ""}${number(change)} px`, "Against the turn before");
  item.append(measures);
  const times = Object.entries(step.seconds ?? {}).map(([stage, time]) => `${stage} ${seconds(time)}`).join(", ");
  const label = make("summary", "", `Raw reply · ${times}`);
  if (step.reply) item.append(make("details", "", "", label, make("pre", "", step.reply)));
  item.addEventListener("click", event => { if (!event.target.closest("details")) show(state.place, i); });
  return item;
}

// The strip of slices.

function describe(slice) {
  if (slice.stop_reason === "absent") return `Slice ${slice.index}: ${stopText(slice)}`;
  const found = areaText(area(finalMask(slice)));
  return `Slice ${slice.index}: ${found}, confidence ${percent(slice.confidence)}. ${stopText(slice)}`;
}
function drawStrip() {
  const areas = new Map(slices.map(slice => [slice, area(finalMask(slice))]));
  const most = Math.max(...areas.values(), 1);
  const worst = state.order !== slices;
  element("strip").replaceChildren(...state.order.map((slice, place) => {
    const fill = make("i");
    fill.style.height = `${100 * areas.get(slice) / most}%`;
    const bar = make("div", `bar ${level(slice)}`, "", fill);
    bar.classList.toggle("early", stoppedEarly(slice));
    bar.classList.toggle("gap", !worst && place > 0 && slice.index - state.order[place - 1].index > 1);
    bar.title = describe(slice);
    bar.dataset.place = place;
    bar.dataset.index = slice.index;
    bar.dataset.areas = slice.steps.map((_, i) => area(maskAfter(slice, i))).join(" ");
    return bar;
  }));
  element("strip-box").style.maxWidth = `${BAR_PX * slices.length}px`;
  const ends = [state.order[0].index, state.order[state.order.length - 1].index].map(index => `slice ${index}`);
  element("strip-start").textContent = worst ? "least sure" : ends[0];
  element("strip-end").textContent = worst ? "surest" : ends[1];
}
/** Slices without a verdict first, then the least confidence; where the target is absent and nobody doubts it, last. */
function worstFirst() {
  const rank = slice => isNumber(slice.confidence) ? slice.confidence : slice.stop_reason === "absent" ? 2 : -1;
  return [...slices].sort((a, b) => rank(a) - rank(b) || a.index - b.index);
}
function toggleOrder() {
  const slice = current();
  state.order = state.order === slices ? worstFirst() : slices;
  element("worst").setAttribute("aria-pressed", state.order !== slices);
  drawStrip();
  show(state.order === slices ? slices.indexOf(slice) : 0);
}

// Moving about.

function startStep(slice) {
  const kept = keptStep(slice);
  return kept < 0 ? Math.max(0, slice.steps.length - 1) : kept;
}
/** Go to a slice by its place in the strip, and to a step of it: the one whose mask was kept, unless told. */
function show(place, step) {
  const slice = state.order[place], moved = slice !== shownSlice;
  state.place = place;
  state.step = step ?? startStep(slice);
  if (moved) {
    summarise(slice);
    element("turns").replaceChildren(...slice.steps.map((one, i) => turnItem(slice, one, i)));
    element("strip").querySelector(".current")?.classList.remove("current");
    element("strip").setAttribute("aria-valuetext", describe(slice));
    element("hud-window").textContent = `Window ${windowText(slice.window ?? trace.window)}`;
    shownSlice = slice;
  }
  element("strip").setAttribute("aria-valuenow", place);
  element("strip").children[place].classList.add("current");
  [...element("turns").children].forEach((item, i) => {
    item.classList.toggle("chosen", i === state.step);
    if (i === state.step) item.firstChild.setAttribute("aria-current", "step");
    else item.firstChild.removeAttribute("aria-current");
  });
  const chosen = element("turns").children[state.step];
  if (moved) element("turns").scrollTop = 0;
  if (chosen) reveal(chosen, element("turns"));
  element("previous-turn").setAttribute("aria-disabled", state.step <= 0);
  element("next-turn").setAttribute("aria-disabled", state.step >= slice.steps.length - 1);
  const turn = slice.steps[state.step];
  element("hud-slice").textContent = `Slice ${slice.index}`;
  element("hud-turn").textContent = turn ? `Turn ${turn.turn} of ${slice.steps[slice.steps.length - 1].turn}` : "No turn";
  element("hud-action").textContent = turn ? ACTIONS[turn.action.kind] : "";
  element("hud-lossy").textContent = page.pictures[slice.index].startsWith("data:image/jpeg") ? "JPEG picture" : "";
  const found = areaText(area(maskAfter(slice, state.step)));
  const happened = turn && `turn ${turn.turn}: ${ACTIONS[turn.action.kind]}, mask ${found}`;
  const spoken = turn ? `Slice ${slice.index}, ${happened}` : describe(slice);
  canvas.setAttribute("aria-label", spoken);
  element("live").textContent = spoken;
  clearTimeout(linkTimer);
  linkTimer = setTimeout(() => location.replace(`#slice=${slice.index}&turn=${turn ? turn.turn : 0}`), 300);
  compose();
}
let shownSlice = null, linkTimer = 0;
/** Scroll a list, and nothing around it, until it shows an item. */
function reveal(item, list) {
  const inner = item.getBoundingClientRect(), outer = list.getBoundingClientRect(), margin = 8;
  if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom + margin;
  if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top + margin;
}
function moveSlice(by) {
  const place = Math.min(state.order.length - 1, Math.max(0, state.place + by));
  if (place !== state.place) show(place);
}
function moveTurn(by) {
  const step = state.step + by;
  if (step >= 0 && step < current().steps.length) show(state.place, step);
}
function play(on) {
  clearTimeout(state.timer);
  state.timer = 0;
  element("play").setAttribute("aria-pressed", on);
  element("play").firstChild.textContent = on ? "Stop " : "Play ";
  if (!on) return;
  state.timer = setTimeout(() => {
    if (state.step < current().steps.length - 1) show(state.place, state.step + 1);
    else if (state.place < state.order.length - 1) show(state.place + 1, 0);
    else return play(false);
    play(true);
  }, current().steps.length > 1 ? PLAY_MS : PLAY_ABSENT_MS);
}
function togglePlay() {
  const slice = current();
  if (!state.timer && state.place === state.order.length - 1 && state.step >= slice.steps.length - 1) show(0, 0);
  else if (!state.timer && state.step >= startStep(slice)) show(state.place, 0);
  play(!state.timer);
}
function toggle(name) {
  state[name] = !state[name];
  element(name).setAttribute("aria-pressed", state[name]);
  compose();
}
function zoom(factor, clientX, clientY) {
  const box = canvas.getBoundingClientRect(), before = placement();
  const px = clientX === undefined ? box.width / 2 : clientX - box.left;
  const py = clientY === undefined ? box.height / 2 : clientY - box.top;
  const anchor = [(px - before.left) / before.scale, (py - before.top) / before.scale];
  state.zoom = Math.min(20, Math.max(1, state.zoom * factor));
  const { scale } = placement();
  state.x = (anchor[0] - (px - box.width / 2) / scale) / viewWidth;
  state.y = (anchor[1] - (py - box.height / 2) / scale) / viewHeight;
  if (state.zoom === 1) state.x = state.y = 0.5;
  paint();
}
function fit() {
  Object.assign(state, { zoom: 1, x: 0.5, y: 0.5 });
  paint();
}

// The frame around it, which does not change.

function windowText({ name, low, high }) {
  const digits = high - low < 20 ? 2 : 0;
  return `${name} ${number(low, digits)} to ${number(high, digits)}`;
}
function extentText(number, of) {
  return `${number}${of === null ? "" : ` of ${of}`} slice${(of ?? number) === 1 ? "" : "s"}`;
}
function facts(list, pairs) {
  element(list).append(...pairs.map(([name, value]) => make("div", "", "", make("dt", "", name), make("dd", "", value))));
}
function fillHeader() {
  const image = trace.image, known = isNumber(trace.voxels), found = slices.filter(slice => area(finalMask(slice))).length;
  document.title = `${trace.prompt} – ${image.name} – IBIS Label run`;
  element("prompt").textContent = trace.prompt;
  element("answer").textContent = trace.answer;
  element("status").textContent = trace.status;
  element("status").className = trace.status;
  for (const id of ["prompt", "answer"]) element(id).title = element(id).textContent;
  facts("totals", [
    ...(page.pixel_mm === null || !known ? [] : [["Volume", `${number(trace.volume_ml, trace.volume_ml < 100 ? 2 : 0)} ml`]]),
    ...(known ? [["Voxels", number(trace.voxels)]] : []),
    ["Slices with target", `${number(found)} of ${number(slices.length)}`],
    ["Time", seconds(trace.seconds)],
  ]);
  const times = Object.entries(trace.timings).map(([stage, time]) => `${stage} ${seconds(time)}`).join(", ");
  const spacing = image.spacing_mm?.map(mm => Number(mm.toFixed(3))).join(" × ");
  const extent = spacing ? [`${image.shape.join(" × ")} voxels of ${spacing} mm`, image.axcodes] : [];
  facts("facts", [
    ["Image", [image.name, image.modality, ...extent].join(", ")],
    ["Engine", `${trace.engine.policy} + ${trace.engine.segmenter}`],
    ["Plane", `${trace.plane}, ${extentText(slices.length, page.slice_count)}`],
    ["Window", windowText(trace.window)],
    ["Stages", times],
    ["Made", trace.created.slice(0, 16).replace("T", " ")],
  ]);
  element("hud-plane").textContent = trace.plane;
  element("hud-overlay").textContent = `Mask colour ${trace.overlay.name}, ${percent(trace.overlay.alpha)}`;
  ["top", "bottom", "left", "right"].forEach((side, i) => { element(`edge-${side}`).textContent = page.edges[i] ?? ""; });
  const notices = [...image.warnings];
  if (trace.status !== "complete") notices.unshift("This run is incomplete: some slices have no final mask.");
  element("notice").hidden = notices.length === 0;
  if (notices.length) element("notice").append(make("ul", "", "", ...notices.map(text => make("li", "", text))));
  const key = (tone, text) => make("span", tone, "", make("i", "swatch"), make("span", "", text));
  element("legend").append(
    make("span", "", "Height: area. Colour: confidence"), ...LEVELS.map(([, tone, text]) => key(tone, text)),
    ...(slices.some(slice => level(slice) === "unknown") ? [key("unknown", "unknown")] : []),
    key("absent", "absent"), key("dot", "stopped early"),
  );
}

const KEYS = {
  ArrowUp: () => moveSlice(-1), ArrowDown: () => moveSlice(1), ArrowLeft: () => moveTurn(-1), ArrowRight: () => moveTurn(1),
  " ": togglePlay, o: () => toggle("overlay"), e: () => toggle("outline"), m: () => toggle("marks"), w: toggleOrder, f: fit,
  "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), "?": () => element("keys").showModal(),
};
const STRIP_KEYS = {
  ArrowLeft: () => moveSlice(-1), ArrowRight: () => moveSlice(1), Home: () => show(0), End: () => show(state.order.length - 1),
  PageUp: () => moveSlice(-10), PageDown: () => moveSlice(10),
};
const BUTTONS = {
  "previous-turn": () => moveTurn(-1), "next-turn": () => moveTurn(1), play: togglePlay, overlay: () => toggle("overlay"),
  outline: () => toggle("outline"), marks: () => toggle("marks"), worst: toggleOrder, fit,
  help: () => element("keys").showModal(),
};
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || element("keys").open) return;
  if (event.key === " " && event.target.closest("button, summary")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = (event.target === element("strip") && STRIP_KEYS[key]) || KEYS[key];
  if (!action) return;
  event.preventDefault();
  if (key !== " ") play(false);
  action();
}
function onWheel(event) {
  event.preventDefault();
  if (event.ctrlKey) return zoom(Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
  wheeled += event.deltaMode ? Math.sign(event.deltaY) * 100 : event.deltaY;
  const notches = Math.trunc(wheeled / 50);
  if (!notches) return;
  wheeled = 0;
  play(false);
  moveSlice(Math.sign(notches));
}
let wheeled = 0;
function onPointer(event) {
  const { scale, left, top } = placement();
  if (event.type === "pointermove" && event.buttons === 1) {
    state.x -= event.movementX / scale / viewWidth;
    state.y -= event.movementY / scale / viewHeight;
    paint();
  }
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left - left) / scale / viewWidth, y = (event.clientY - box.top - top) / scale / viewHeight;
  const inside = event.type !== "pointerleave" && x >= 0 && x < 1 && y >= 0 && y < 1;
  element("hud-point").textContent = inside ? `x ${x.toFixed(4)}  y ${y.toFixed(4)}` : "";
}
function onStrip(event) {
  const bar = event.target.closest(".bar");
  if (!bar || !(event.buttons & 1) || Number(bar.dataset.place) === state.place) return;
  play(false);
  show(Number(bar.dataset.place));
}
/** The slice and turn that the address names, else the slice with the largest mask. */
function begin() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const named = slices.findIndex(slice => String(slice.index) === wanted.get("slice"));
  if (named >= 0) {
    const step = slices[named].steps.findIndex(one => String(one.turn) === wanted.get("turn"));
    return show(named, step < 0 ? undefined : step);
  }
  const areas = slices.map(slice => area(finalMask(slice)));
  show(areas.indexOf(Math.max(...areas)));
}

fillHeader();
if (slices.length) {
  element("strip").setAttribute("aria-valuemax", slices.length - 1);
  drawStrip();
  for (const [id, action] of Object.entries(BUTTONS)) element(id).addEventListener("click", action);
  document.addEventListener("keydown", onKey);
  canvas.addEventListener("wheel", onWheel, { passive: false });
  for (const type of ["pointermove", "pointerleave", "pointerdown"]) canvas.addEventListener(type, onPointer);
  for (const type of ["pointerdown", "pointermove"]) element("strip").addEventListener(type, onStrip);
  begin();
  new ResizeObserver(paint).observe(canvas);
} else {
  element("summary").append(make("p", "early", "The run ended before it looked at a slice."));
}
