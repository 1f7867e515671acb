// Questions and their answers. An entry: pictures, prompt, text, regions, and once it has ended its seconds, tokens and
// reason; state is "coming", "done", "stopped" or "failed". A region has `hidden` if it was switched off.
const MOST_ENTRIES = 50, TOKENS = /<(?:loc\d{4}|seg\d{3})>/g;

async function ask() {
  if (!state.shown) return refuse("Choose a picture first.", "choose");
  const prompt = $("prompt").value.trim();
  if (!prompt) return refuse("Write a prompt first, or choose what to do.", "prompt");
  state.asking?.abort();
  const others = $("together").checked ? state.pictures.filter((picture) => picture !== state.shown) : [];
  const entry = { pictures: [state.shown, ...others], prompt, text: "", regions: [], state: "coming", reason: "" };
  const asking = state.asking = new AbortController();
  state.entries = [entry, ...state.entries].slice(0, MOST_ENTRIES);
  showEntry(entry);
  showAsking(true);
  if (matchMedia("(max-width: 62rem)").matches) $("reply").scrollIntoView({ block: "nearest" }); // one column: it is far down
  tell("Asking…");
  try {
    await receive(entry, asking.signal);
    tell(summary(entry));
  } catch (error) {
    entry.state = asking.signal.aborted ? "stopped" : "failed";
    if (state.asking === asking) tell(entry.state === "stopped" ? "Stopped." : explained(error), entry.state === "failed");
  }
  if (state.asking === asking) showAsking(false);
  if (state.entry === entry) showEnd(entry);
  showHistory();
}

function refuse(text, id) {
  tell(text, true);
  $(id).focus();
}

async function receive(entry, signal) {
  const began = performance.now();
  for await (const { choices, usage } of answerEvents(entry.prompt, entry.pictures, signal)) {
    const [{ delta = {}, finish_reason: reason } = {}] = choices;
    entry.tokens = usage?.completion_tokens ?? entry.tokens;
    entry.reason = reason ?? entry.reason;
    if (delta.content) entry.text += delta.content;
    if (delta.regions) entry.regions.push(...delta.regions);
    if (state.entry !== entry) continue; // another picture is being looked at
    if (delta.content) showText(entry);
    if (delta.regions) showRegions(entry);
  }
  entry.seconds = (performance.now() - began) / 1000;
  entry.state = "done";
}

function summary(entry) {
  const parts = [`Done in ${entry.seconds.toFixed(1)} s`, counted(entry.tokens ?? 0, "token")];
  if (entry.regions.length) parts.push(`${entry.regions.length} found`);
  return `${parts.join(", ")}.${entry.reason === "length" ? " The answer was cut off: it is longer than the server allows." : ""}`;
}

// The answer without its tokens of places and masks: what was found, in words.
function readable(entry) {
  if (!/<loc\d{4}>/.test(entry.text)) return entry.text;
  const numbers = new Map();
  for (const { label } of entry.regions) numbers.set(label || "object", (numbers.get(label || "object") ?? 0) + 1);
  if (numbers.size) return [...numbers].map(([label, number]) => (number > 1 ? `${label} × ${number}` : label)).join(", ");
  return entry.state === "coming" ? "" : entry.text.replace(TOKENS, "").trim();
}

// --- on the page ---------------------------------------------------------------------------------------------------------

function showAsking(on) {
  $("stop").disabled = !on;
  $("progress").hidden = !on;
  if (!on) state.asking = null;
}

function showEntry(entry) {
  Object.assign(state, { entry, lit: null });
  const others = entry && entry.pictures.length > 1 ? ` (${entry.pictures.length} pictures; boxes are in the first)` : "";
  $("asked").textContent = entry ? `${entry.prompt}${others}` : "";
  $("own").hidden = true;
  showText(entry);
  showRegions(entry);
  showEnd(entry);
  showHistory();
}

function showText(entry) {
  const words = entry ? readable(entry) : "";
  if ($("answer").textContent !== words) $("answer").textContent = words;
  $("raw").textContent = entry?.text ?? "";
  $("own").hidden = !entry || words === entry.text;
}

function showEnd(entry) {
  $("answer").setAttribute("aria-busy", String(entry?.state === "coming"));
  if (entry && entry.state !== "coming") {
    showText(entry);
    if (!$("answer").textContent) $("answer").textContent = nothing(entry);
  }
  $("copy").disabled = !entry?.text;
  $("copy-json").disabled = !entry || entry.state === "coming" || entry.state === "failed";
}

function nothing({ state: end, text }) {
  if (end === "failed") return "No answer.";
  if (end === "stopped") return "Stopped before an answer.";
  return text ? "No box could be read from this answer." : "Nothing found.";
}

const rows = new WeakMap();

function rowOf(region) {
  if (!rows.has(region)) {
    const box = element("input", { type: "checkbox", checked: true, onfocus: () => light(region), onblur: () => light(null) });
    box.onchange = () => {
      region.hidden = !box.checked;
      redraw();
    };
    const where = element("small", { textContent: region.box.map(Math.round).join(", "), title: "left, top, right, bottom in pixels" });
    const label = element("label", {}, box, element("i"), element("b", { textContent: region.label || "an object" }), where);
    rows.set(region, element("li", { onmouseenter: () => light(region), onmouseleave: () => light(null) }, label));
  }
  return rows.get(region);
}

function showRegions(entry) {
  const regions = entry?.regions ?? [], list = $("found");
  const wanted = regions.map(rowOf);
  for (const row of [...list.children]) if (!wanted.includes(row)) row.remove();
  wanted.forEach((row, index) => {
    row.style.setProperty("--colour", colourOf(entry, regions[index]));
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
  });
  $("found-count").textContent = counted(regions.length, "box", "boxes");
  list.hidden = $("found-head").hidden = !regions.length;
  redraw();
}

function switchAll(on) {
  for (const region of state.entry.regions) {
    region.hidden = !on;
    rowOf(region).querySelector("input").checked = on;
  }
  redraw();
}

// What is shown, in the form of `generate.py --format json`.
function asJson({ pictures: [{ name, width, height }], prompt, text, reason, regions }) {
  const seen = regions.filter(({ hidden }) => !hidden).map(({ hidden, ...region }) => region);
  const answer = { image: name, prompt, width, height, text, finish_reason: reason, regions: seen };
  return JSON.stringify(answer, null, 2);
}
