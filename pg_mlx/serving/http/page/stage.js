// The picture on screen: as large as fits, with boxes that answer the pointer, and a place that can be drawn.
const MARGIN = 16, ENLARGED = 3, CLICK = 4;
let pending = 0, drag = null;

// The entry whose regions belong to the shown picture. Answers about several pictures have theirs in the first.
function pictured() {
  return state.entry?.pictures[0] === state.shown ? state.entry : null;
}

function redraw() {
  pending ||= requestAnimationFrame(() => {
    pending = 0;
    if (state.shown) drawStage();
  });
}

function drawStage() {
  const { width, height, preview } = state.shown, canvas = $("canvas"), ratio = devicePixelRatio || 1;
  const { clientWidth, clientHeight } = $("stage");
  const scale = Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height, ENLARGED);
  const [wide, high] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  Object.assign(canvas.style, { width: `${wide}px`, height: `${high}px` });
  canvas.width = Math.round(wide * ratio); // this clears it
  canvas.height = Math.round(high * ratio);
  const context = canvas.getContext("2d"), entry = pictured(), place = placeIn($("prompt").value);
  paint(context, preview, entry, 2 * ratio, state.lit, (region, colour) => previewLayer(region, colour, preview));
  if (place) outlinePlace(context, place, 2 * ratio);
  canvas.setAttribute("aria-label", described(entry, place));
}

function described(entry, place) {
  const labels = entry?.regions.filter(({ hidden }) => !hidden).map(({ label }) => label || "an object") ?? [];
  const boxes = labels.length ? `, with boxes around: ${labels.join(", ")}` : "";
  return `${state.shown.name}${boxes}${place ? ", with a marked place" : ""}`;
}

function light(region) {
  if (state.lit === region) return;
  state.lit = region;
  state.entry?.regions.forEach((one) => rowOf(one).classList.toggle("lit", one === region));
  redraw();
}

// --- the pointer ---------------------------------------------------------------------------------------------------------

// Where an event is in the picture, x and y of 0..1.
function at(event) {
  const { left, top, width, height } = $("canvas").getBoundingClientRect();
  return [(event.clientX - left) / width, (event.clientY - top) / height].map((value) => Math.min(Math.max(value, 0), 1));
}

// The smallest visible region around a point: a large box must not hide those inside of it.
function regionAt([x, y]) {
  const around = pictured()?.regions.filter(({ hidden, box_normalized: [x0, y0, x1, y1] }) =>
    !hidden && x >= x0 && x <= x1 && y >= y0 && y <= y1) ?? [];
  const area = ({ box_normalized: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
  return around.sort((one, other) => area(one) - area(other))[0] ?? null;
}

function between([x, y], [u, v]) {
  return [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];
}

// A mouse always draws. A finger scrolls the page, unless "Mark a place" is pressed.
function startDrag(event) {
  if (event.button || (event.pointerType === "touch" && !document.body.classList.contains("marking"))) return;
  drag = { from: at(event), x: event.clientX, y: event.clientY, drawn: false };
  $("canvas").setPointerCapture(event.pointerId);
}

function moveDrag(event) {
  if (!drag) return light(regionAt(at(event)));
  drag.drawn ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > CLICK;
  if (drag.drawn) setPrompt(withPlace($("prompt").value, between(drag.from, at(event))));
}

function endDrag(event) {
  if (drag && !drag.drawn) {
    const region = regionAt(at(event));
    if (region) rowOf(region).querySelector("input").focus();
  } else if (drag) {
    tell("The marked place is in the prompt.");
    document.body.classList.remove("marking");
    press($("mark"), false);
  }
  drag = null;
}
