// The pictures of the strip. Each has its file, its size in pixels, upright, a preview to draw from, and a thumbnail.
const PREVIEW = 1600, THUMBNAIL = 160, LARGEST = 16e6;

function shrunk(source, most) {
  const scale = Math.min(1, most / Math.max(source.width, source.height));
  const canvas = element("canvas", {
    width: Math.max(1, Math.round(source.width * scale)), height: Math.max(1, Math.round(source.height * scale)),
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // where a picture is transparent the model sees white, too
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function readPicture(file) {
  const whole = await createImageBitmap(file);
  const preview = shrunk(whole, PREVIEW), { width, height } = whole;
  whole.close();
  const thumbnail = shrunk(preview, THUMBNAIL).toDataURL("image/jpeg", 0.8);
  return { file, name: file.name || "picture", width, height, preview, thumbnail };
}

function dataURI(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(`${file.name} cannot be read any more. Was it moved?`));
    reader.readAsDataURL(file);
  });
}

// Add files to the strip and show the first of them. Returns whether there was any picture.
async function take(files) {
  const added = [], failed = [];
  if (files.length) tell("Opening…");
  for (const file of files) {
    try {
      added.push(await readPicture(file));
    } catch {
      failed.push(file.name || "that file");
    }
  }
  state.pictures.push(...added);
  if (added.length) {
    tell("");
    show(added[0]);
    if (!matchMedia("(pointer: coarse)").matches) $("prompt").focus(); // or the keyboard of a phone would cover the picture
  }
  if (failed.length) tell(`This browser cannot read ${failed.join(", ")} as a picture.`, true);
  return added.length > 0;
}

async function takeSample() {
  const response = await fetch("sample.png");
  if (!response.ok) throw new Error(await explain(response));
  await take([new File([await response.blob()], "sample.png", { type: "image/png" })]);
  setPrompt("detect red circle ; blue star");
  await ask();
}

// Put a picture on the stage, with its latest answer or the given one.
function show(picture, entry = state.entries.find(({ pictures }) => pictures[0] === picture) ?? null) {
  Object.assign(state, { shown: picture, lit: null });
  for (const id of ["canvas", "tools", "strip"]) $(id).hidden = !picture;
  $("empty").hidden = !!picture;
  $("stage").style.setProperty("--aspect", picture ? picture.width / picture.height : "");
  showStrip();
  if (picture) itemOf(picture).scrollIntoView({ block: "nearest", inline: "nearest" });
  showEntry(entry);
  setPrompt($("prompt").value);
}

const items = new WeakMap();

function itemOf(picture) {
  if (!items.has(picture)) {
    const image = element("img", { src: picture.thumbnail, alt: "", width: 72, height: 72, draggable: false });
    const thumb = element("button", { type: "button", className: "thumb", onclick: () => show(picture) }, image, element("span"));
    const remove = element("button", { type: "button", className: "remove", onclick: () => drop(picture) });
    items.set(picture, element("li", {}, thumb, remove));
  }
  return items.get(picture);
}

function showStrip() {
  const list = $("pictures"), wanted = state.pictures.map(itemOf);
  for (const item of [...list.children]) if (!wanted.includes(item)) item.remove();
  wanted.forEach((item, index) => {
    const picture = state.pictures[index], [thumb, remove] = item.children;
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
    thumb.lastChild.textContent = index + 1;
    thumb.setAttribute("aria-label", `Picture ${index + 1}: ${picture.name}`);
    thumb.title = `${picture.name}, ${picture.width} × ${picture.height}`;
    press(thumb, picture === state.shown);
    remove.setAttribute("aria-label", `Remove picture ${index + 1}: ${picture.name}`);
  });
  $("about").hidden = wanted.length < 2;
  $("all").textContent = `all ${wanted.length} pictures, together`;
  if (wanted.length < 2) document.querySelector("[name=about]").checked = true;
}

function drop(picture) {
  const index = state.pictures.indexOf(picture);
  state.pictures.splice(index, 1);
  const next = state.pictures[Math.min(index, state.pictures.length - 1)] ?? null;
  if (picture === state.shown) show(next);
  else showStrip();
  (next ? itemOf(next).firstChild : $("choose")).focus();
}

// The picture in its own size, with what is shown, as a file. Safari has no canvas of more than 16 million pixels.
async function savePicture() {
  const picture = state.shown, whole = await createImageBitmap(picture.file);
  const scale = Math.min(1, Math.sqrt(LARGEST / (whole.width * whole.height)));
  const canvas = shrunk(whole, Math.max(whole.width, whole.height) * scale), { width, height } = canvas;
  whole.close();
  const line = Math.max(2, Math.round(Math.max(width, height) / 300));
  const source = shrunk(canvas, Infinity), entry = pictured();
  paint(canvas.getContext("2d"), source, entry, line, null, ({ mask }, colour) => maskLayer(mask, colour, width, height));
  const blob = await new Promise((done) => canvas.toBlob(done));
  const link = element("a", { href: URL.createObjectURL(blob), download: `${stem(picture.name)}-boxes.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  tell("Saved.");
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "-").slice(0, 60) || "picture";
}
