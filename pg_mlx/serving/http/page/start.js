// What happens when something is pressed, dropped, pasted or drawn.
const failed = (error) => tell(explained(error), true);
const safely = (work) => () => Promise.resolve().then(work).catch(failed);

for (const [id, work] of Object.entries({
  "theme": nextTheme,
  "choose": () => $("file").click(),
  "add": () => $("file").click(),
  "shoot": openCamera,
  "shoot-more": openCamera,
  "snap": snap,
  "leave": () => $("camera").close(),
  "sample": takeSample,
  "save": savePicture,
  "mark": mark,
  "unmark": unmark,
  "stop": () => state.asking?.abort(),
  "copy": () => copy(state.entry.text, "The answer is"),
  "copy-json": () => copy(asJson(state.entry), "The JSON is"),
  "all-on": () => switchAll(true),
  "all-off": () => switchAll(false),
  "clear": clearHistory,
})) $(id).onclick = safely(work);

for (const id of ["file", "capture"]) {
  $(id).onchange = async () => {
    const files = [...$(id).files];
    $(id).value = ""; // so that the same file can be chosen again
    await take(files);
  };
}
for (const button of document.querySelectorAll("[data-layer]")) {
  button.onclick = () => {
    const name = button.dataset.layer;
    press(button, state.layers[name] = !state.layers[name]);
    redraw();
  };
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  ask();
};
$("prompt").oninput = promptChanged;
$("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
};
for (const id of SIDES) {
  $(id).oninput = placeFromFields;
  $(id).onblur = showPlace;
}
$("key").onchange = safely(showModel);
$("camera").onclose = closeCamera;
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("camera").open) state.asking?.abort();
});

Object.assign($("canvas"), {
  onpointerdown: startDrag, onpointermove: moveDrag, onpointerup: endDrag, onpointercancel: () => drag = null,
  onpointerleave: () => drag || light(null),
});
new ResizeObserver(redraw).observe($("stage"));

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});

setTheme(storedTheme());
listTasks();
setPrompt(startOf("caption"));
showHistory();
showModel().catch(() => {});
