// Boxes and masks, drawn on any canvas: the stage, or the picture that is saved.

// None of them has a name that prompts use: a red box that says "blue star" looks like a mistake. White can be read on each.
const COLOURS = ["#d6006c", "#007a6c", "#6a3fd1", "#756900", "#006d9c", "#a3440a", "#4d6b00", "#8f3d8f"];

function colourOf(entry, region) {
  const labels = [...new Set(entry.regions.map(({ label }) => label))];
  return COLOURS[labels.indexOf(region.label) % COLOURS.length];
}

// COCO's run lengths: letters of 6 bits, 5 of them the number's, numbers from the fourth on as differences to the last but
// one, runs of 0 and 1 in turn, column by column.
function runLengths(letters) {
  const runs = [];
  for (let at = 0; at < letters.length;) {
    let value = 0, shift = 0, bits;
    do {
      bits = letters.charCodeAt(at++) - 48;
      value += (bits & 31) * 2 ** shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) value -= 2 ** shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

function maskLayer(mask, colour, width, height) {
  const [rows, columns] = mask.size;
  const layer = new OffscreenCanvas(width, height), context = layer.getContext("2d");
  const image = context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const word = (110 << 24 | b << 16 | g << 8 | r) >>> 0;
  const set = new Uint8Array(rows * columns);
  let at = 0;
  runLengths(mask.counts).forEach((length, index) => {
    if (index % 2) set.fill(1, at, at + length);
    at += length;
  });
  for (let y = 0; y < height; y++) {
    const row = Math.floor(y * rows / height);
    for (let x = 0; x < width; x++) {
      if (set[Math.floor(x * columns / width) * rows + row]) pixels[y * width + x] = word;
    }
  }
  context.putImageData(image, 0, 0);
  return layer;
}

const layers = new WeakMap();

// The stage draws a mask again and again, so it is decoded once, in the size of the preview.
function previewLayer(region, colour, { width, height }) {
  const known = layers.get(region);
  if (known?.colour === colour) return known.layer;
  const layer = maskLayer(region.mask, colour, width, height);
  layers.set(region, { colour, layer });
  return layer;
}

// source: the picture. entry: whose regions are drawn, or null. line: width of a line in pixels of the canvas. lit: the
// region that stands out, or null. layerOf(region, colour): its mask as something to draw.
function paint(context, source, entry, line, lit, layerOf) {
  const { width, height } = context.canvas;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  const seen = entry?.regions.filter(({ hidden }) => !hidden) ?? [], { boxes, masks, names } = state.layers;
  if (!seen.includes(lit)) lit = null;
  seen.sort((one, other) => (one === lit) - (other === lit)); // the last is on top
  if (lit && boxes) shade(context, lit);
  for (const region of seen) {
    const colour = colourOf(entry, region);
    context.globalAlpha = lit && region !== lit ? 0.3 : 1;
    if (masks && region.mask) context.drawImage(layerOf(region, colour), 0, 0, width, height);
    if (boxes) outline(context, region.box_normalized, colour, region === lit ? line * 1.5 : line);
    if (names && region.label) drawName(context, region, colour, line * 6.5);
  }
  context.globalAlpha = 1;
}

function corners(context, [x0, y0, x1, y1]) {
  const { width, height } = context.canvas;
  return [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height];
}

function outline(context, box, colour, line) {
  context.strokeStyle = colour;
  context.lineWidth = line;
  context.strokeRect(...corners(context, box));
}

// Everything but the region becomes darker.
function shade(context, region) {
  context.fillStyle = "rgb(0 0 0 / .45)";
  context.beginPath();
  context.rect(0, 0, context.canvas.width, context.canvas.height);
  context.rect(...corners(context, region.box_normalized));
  context.fill("evenodd");
}

function drawName(context, region, colour, size) {
  const [left, top] = corners(context, region.box_normalized), high = Math.round(size * 1.5), space = Math.round(size * 0.35);
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const label = fitting(context, region.label, context.canvas.width * 0.4), wide = context.measureText(label).width + 2 * space;
  const x = Math.max(0, Math.min(left, context.canvas.width - wide)), y = top >= high ? top - high : top;
  context.fillStyle = colour;
  context.fillRect(x, y, wide, high);
  context.fillStyle = "#fff";
  context.fillText(label, x + space, y + high / 2);
}

// A label that would hide half of the picture is cut off.
function fitting(context, label, most) {
  const letters = [...label.slice(0, 100)];
  if (context.measureText(label).width <= most) return label;
  while (letters.length > 1 && context.measureText(`${letters.join("")}…`).width > most) letters.pop();
  return `${letters.join("").trimEnd()}…`;
}

function outlinePlace(context, box, line) {
  context.save();
  for (const [colour, offset] of [["#000", 0], ["#fff", line * 3]]) {
    context.setLineDash([line * 3, line * 3]);
    context.lineDashOffset = offset;
    outline(context, box, colour, line);
  }
  context.restore();
}
