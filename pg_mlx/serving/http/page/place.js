// A place in the prompt: four <loc> in the order y0 x0 y1 x1. The prompt is the only record of the marked place: the box on the
// stage and the fields for its sides follow from the text.
const LAST = 1023, PLACE = /<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>/;

// As Python's round, which pg_mlx.format_region uses: a half goes to the even neighbour.
function roundHalfEven(value) {
  const below = Math.floor(value), rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2) ? below + 1 : below;
}

// box: x0, y0, x1, y1 of 0..1.
function locText([x0, y0, x1, y1]) {
  const token = (at) => String(roundHalfEven(Math.min(Math.max(at, 0), 1) * LAST)).padStart(4, "0");
  return [y0, x0, y1, x1].map((at) => `<loc${token(at)}>`).join("");
}

// The box in a text, as locText takes it; null if there is none.
function placeIn(text) {
  const found = PLACE.exec(text);
  if (!found) return null;
  const [y0, x0, y1, x1] = found.slice(1).map((digits) => Number(digits) / LAST);
  return x0 <= x1 && y0 <= y1 && x1 <= 1 && y1 <= 1 ? [x0, y0, x1, y1] : null;
}

// PaliGemma's own prompt with a place is "caption", without a language.
function withPlace(prompt, box) {
  const place = locText(box), words = prompt.trim();
  if (PLACE.test(words)) return words.replace(PLACE, place);
  return /^(caption( [a-z]{2,3})?)?$/.test(words) ? `caption ${place}` : `${words} ${place}`;
}

function withoutPlace(prompt) {
  const words = prompt.replace(PLACE, " ").replace(/ +/g, " ").trim();
  return words === "caption" ? "caption en" : words;
}

// --- the fields of the sides ---------------------------------------------------------------------------------------------

const SIDES = ["x0", "y0", "x1", "y1"].map((name) => `place-${name}`);

function sizes() {
  const { width, height } = state.shown;
  return [width, height, width, height];
}

function showPlace() {
  const box = state.shown && placeIn($("prompt").value), [a, b, c, d] = SIDES.map($);
  $("place").hidden = !box;
  if (!box || [a, b, c, d].includes(document.activeElement)) return;
  [a, b, c, d].forEach((field, index) => {
    field.max = sizes()[index];
    field.value = Math.round(box[index] * sizes()[index]);
    field.removeAttribute("aria-invalid");
  });
}

function placeFromFields() {
  const box = SIDES.map((id, index) => ($(id).value === "" ? NaN : $(id).valueAsNumber / sizes()[index]));
  const [x0, y0, x1, y1] = box, good = box.every((at) => at >= 0 && at <= 1) && x0 <= x1 && y0 <= y1;
  for (const id of SIDES) $(id).setAttribute("aria-invalid", String(!good));
  if (!good) return tell("Left must be smaller than right, top smaller than bottom, and all within the picture.", true);
  tell("");
  setPrompt(withPlace($("prompt").value, box));
}

// For keyboards: a box in the middle, whose sides are then changed in the fields.
function mark() {
  const on = !document.body.classList.contains("marking");
  document.body.classList.toggle("marking", on);
  press($("mark"), on);
  if (!on) return tell("");
  if (!placeIn($("prompt").value)) setPrompt(withPlace($("prompt").value, [0.25, 0.25, 0.75, 0.75]));
  tell("Draw a box on the picture, or change its sides in the fields.");
}

function unmark() {
  document.body.classList.remove("marking");
  press($("mark"), false);
  setPrompt(withoutPlace($("prompt").value));
  $("prompt").focus();
}
