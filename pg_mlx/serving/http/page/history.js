// Earlier questions. They are kept in memory only: pictures are private, and large.
function showHistory() {
  const first = state.entries.map(cardOf), list = $("history");
  for (const card of [...list.children]) if (!first.includes(card)) card.remove();
  first.forEach((card, index) => {
    if (list.children[index] !== card) list.insertBefore(card, list.children[index] ?? null);
    const entry = state.entries[index], [button] = card.children;
    button.querySelector("small").textContent = outcome(entry);
    button.setAttribute("aria-current", String(entry === state.entry));
  });
  $("clear").disabled = !state.entries.length;
}

const cards = new WeakMap();

function cardOf(entry) {
  if (!cards.has(entry)) {
    const image = element("img", { src: entry.pictures[0].thumbnail, alt: "", width: 56, height: 56, draggable: false });
    const words = element("span", {}, element("b", { textContent: entry.prompt }), element("small"));
    cards.set(entry, element("li", {}, element("button", { type: "button", onclick: () => recall(entry) }, image, words)));
  }
  return cards.get(entry);
}

function outcome(entry) {
  if (entry.state === "coming") return "…";
  if (entry.state !== "done") return entry.state;
  return entry.regions.length ? counted(entry.regions.length, "box", "boxes") : readable(entry) || "nothing found";
}

// Show an earlier question again: its pictures, prompt and answer.
function recall(entry) {
  for (const picture of entry.pictures) if (!state.pictures.includes(picture)) state.pictures.push(picture);
  show(entry.pictures[0], entry);
  setPrompt(entry.prompt);
  if (entry.state === "done") tell(summary(entry));
}

function clearHistory() {
  state.asking?.abort();
  state.entries = [];
  showEntry(null);
  tell("The earlier questions are gone.");
  $("prompt").focus();
}
