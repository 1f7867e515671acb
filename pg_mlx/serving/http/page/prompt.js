// The prompt, and PaliGemma's task words with which it begins.
const TASKS = [
  { word: "caption", label: "Describe", hint: "Says what the picture shows. Instead of en, name another language: caption es." },
  { word: "answer", label: "Ask", hint: "Write a question after the language: answer en what is on the table?" },
  { word: "detect", label: "Find", hint: "Name what to find, with ; between: detect cat ; dog. Each gets a box." },
  { word: "segment", label: "Outline", hint: "Name what to outline, with ; between: segment cat. Each gets a box and a mask." },
  { word: "ocr", label: "Read", hint: "Reads the text in the picture." },
];
const FREE = "The model knows the task words above. What else it understands depends on its training.";
const FAR = "PaliGemma was trained on places after caption. Other prompts with a place may be ignored.";
const objects = { kept: "" }; // what is to be found and to be outlined are mostly the same

function taskOf(prompt) {
  const word = /^\s*(\w*)/.exec(prompt)[1];
  return TASKS.find((task) => task.word === word) ?? null;
}

// What stands behind the task word.
function argument(prompt) {
  return prompt.trim().replace(/^\w+\s*/, "");
}

function startOf(word) {
  if (word === "caption") return "caption en";
  if (word === "answer") return "answer en ";
  return word === "ocr" ? "ocr" : `${word} ${objects.kept}`;
}

function chooseTask({ word }) {
  const now = taskOf($("prompt").value)?.word;
  if (now === "detect" || now === "segment") objects.kept = argument($("prompt").value);
  if (now !== word) setPrompt(startOf(word));
  $("prompt").focus();
  $("prompt").setSelectionRange($("prompt").value.length, $("prompt").value.length);
}

// Set the prompt, and everything that follows from it.
function setPrompt(text) {
  if ($("prompt").value !== text) $("prompt").value = text;
  promptChanged();
}

function promptChanged() {
  const prompt = $("prompt").value, task = taskOf(prompt);
  [...$("tasks").children].forEach((button, index) => press(button, TASKS[index] === task));
  const far = placeIn(prompt) && task?.word !== "caption";
  $("hint").textContent = far ? FAR : task?.hint ?? (prompt.trim() ? FREE : "Choose what to do, or write a prompt.");
  showPlace();
  redraw();
}

function listTasks() {
  $("tasks").replaceChildren(...TASKS.map((task) => element(
    "button", { type: "button", onclick: () => chooseTask(task) }, task.label, element("small", { textContent: task.word }),
  )));
}
