// What the page knows, and small helpers. Text from outside (labels, names of files, messages) becomes text nodes, never HTML.
const state = {
  pictures: [], // those of the strip, see pictures.js
  shown: null, // the one on the stage
  entries: [], // questions with their answers, the newest first, see answer.js
  entry: null, // the one whose answer is shown
  asking: null, // the AbortController of the answer that is coming
  lit: null, // the region that a pointer or the focus is on
  layers: { boxes: true, masks: true, names: true },
};

const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function tell(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

function press(button, on) {
  button.setAttribute("aria-pressed", String(on));
}

function counted(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

// Without https, and on another machine than this one, browsers offer no navigator.clipboard.
async function copy(text, what) {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyFromField(text);
    tell(`${what} copied.`);
  } catch {
    tell("This browser allows no copying here. Select the text and copy it yourself.", true);
  }
}

function copyFromField(text) {
  const before = document.activeElement, field = element("textarea", { value: text });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  if (!done) throw new Error("not copied");
}

// --- dark and light ------------------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"], THEME = "pg_mlx.theme";

function storedTheme() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null; // storage may be forbidden
  }
}

function setTheme(theme) {
  const known = THEMES.includes(theme) ? theme : "auto";
  document.documentElement.dataset.theme = known;
  $("theme-name").textContent = `Theme: ${known}`;
  try {
    if (known === "auto") localStorage.removeItem(THEME);
    else localStorage.setItem(THEME, known);
  } catch {
    // then it is for this visit only
  }
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
}
