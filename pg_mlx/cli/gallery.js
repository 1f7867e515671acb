"use strict";
{
  const byId = (id) => document.getElementById(id);
  const list = byId("answers"), controls = ["words", "shown", "order"].map(byId);
  const cards = Array.from(list.children, (element, number) => ({
    element,
    number,
    name: element.dataset.name,
    labels: JSON.parse(element.dataset.labels),
    found: Number(element.dataset.found),
    score: element.dataset.score === "" ? null : Number(element.dataset.score),
    words: element.textContent.toLowerCase(),
  }));

  for (const label of [...new Set(cards.flatMap((card) => card.labels))].sort()) {
    const option = document.createElement("option");
    option.textContent = label || "an object";
    option.value = `=${label}`;
    byId("shown").append(option);
  }

  const compare = (key) => {
    const down = key.startsWith("-"), of = (card) => card[down ? key.slice(1) : key];
    return (a, b) => {
      const one = of(a), other = of(b);
      if (one === null || other === null) return (one === null) - (other === null) || a.number - b.number;
      const order = typeof one === "string" ? one.localeCompare(other, undefined, { numeric: true }) : one - other;
      return (down ? -order : order) || a.number - b.number;
    };
  };

  const update = () => {
    const [words, shown, order] = controls.map((control) => control.value);
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const card of cards) {
      const kind = shown === "" || (shown === "-" ? card.found === 0 : card.labels.includes(shown.slice(1)));
      const show = kind && wanted.every((word) => card.words.includes(word));
      card.element.hidden = !show;
      visible += show;
    }
    list.append(...[...cards].sort(compare(order)).map((card) => card.element));
    byId("count").textContent = `${visible} of ${cards.length}`;
  };

  for (const control of controls) control.addEventListener("input", update);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("controls").hidden = false;
  update();
}
