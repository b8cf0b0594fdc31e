// Paint a mask over the photo: coloured on the page, grey on black for the server. The opacity of the
// colour is the mask: what is sent is what is shown.

const PAINT = [0x2f, 0xc8, 0xff];
const MASK_SIDE = 1024;
const MOST_STEPS = 30; // that can be undone
const SOFTEST = 0.4; // standard deviation of the softest border, in radii of the brush
const FAINT = 4; // of 255: a difference that is not seen
const LEAST_SOFT = 0.5; // pixels; below, a border is hard
const canvas = $("paint");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const rest = make("canvas"); // hidden: the mask without the stroke that is being painted
const cursor = { x: 0.5, y: 0.5 };
let erasing = false;
let moving = false; // whether dragging moves the picture
let painted = false;
let loading = null; // address of an earlier mask that is on its way to the canvas
let stroke = null; // being painted: {points, radius, deviation}
let mask = new Uint8ClampedArray(); // opacities without it, row by row
let earlier = []; // masks to go back to
let later = []; // those that were undone

// Begin anew, on a canvas for this photo.
function clearMask() {
  loading = stroke = null;
  const photo = state.view.photo;
  if (!photo) return;
  const scale = Math.min(1, MASK_SIDE / Math.max(photo.width, photo.height));
  canvas.width = rest.width = Math.max(1, Math.round(photo.width * scale));
  canvas.height = rest.height = Math.max(1, Math.round(photo.height * scale));
  mask = readMask();
  earlier = [];
  later = [];
  showMaskState();
}

function showMaskState() {
  painted = Boolean(loading || (stroke && !erasing)) || mask.some(Boolean);
  setText("mask-said", painted ? "A mask is painted." : "");
  setText("paint-it", painted ? "Change the mask" : "Paint a mask");
  setUnusable("undo", !earlier.length);
  setUnusable("redo", !later.length);
}

function readMask() {
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  return new Uint8ClampedArray(data.length / 4).map((_, i) => data[4 * i + 3]);
}

// An image of the mask's size, of the colours [red, green, blue, opacity] of its values.
function imageOf(values, colour) {
  const image = new ImageData(canvas.width, canvas.height);
  const colours = new Uint32Array(image.data.buffer);
  const palette = new Uint8Array(4 * 256);
  for (let value = 0; value < 256; value += 1) palette.set(colour(value), 4 * value);
  const packed = new Uint32Array(palette.buffer);
  values.forEach((value, i) => (colours[i] = packed[value]));
  return image;
}

function writeMask(values) {
  pen.putImageData(imageOf(values, (value) => [...PAINT, value]), 0, 0);
}

// Keep what is on the canvas as a step that can be undone, without the traces that a soft brush
// leaves where all was painted or erased.
function keepStep() {
  earlier = [...earlier, mask].slice(-MOST_STEPS);
  later = [];
  mask = readMask().map((value) => (value < FAINT ? 0 : value > 255 - FAINT ? 255 : value));
  writeMask(mask);
  showMaskState();
}

// Change every value of the mask, as one step.
function changeMask(change) {
  if (loading) return;
  stopStroke();
  touch("mask");
  writeMask(mask.map(change));
  keepStep();
}

// Take the last mask of one list, and put the present one on the other.
function stepMask(from, to) {
  if (loading || !from.length) return;
  stopStroke();
  touch("mask");
  to.push(mask);
  mask = from.pop();
  writeMask(mask);
  showMaskState();
}

// In pixels of the mask. On the screen, the brush has the same size at every zoom.
function radius() {
  const { clientWidth, clientHeight } = $("picture");
  const seen = Math.min(clientWidth, clientHeight) * (canvas.width / $("sheet").clientWidth);
  return (Number($("brush").value) / 200) * seen;
}

function startStroke(point) {
  if (loading) return;
  touch("mask");
  const size = radius();
  stroke = { points: [], radius: size, deviation: (Number($("soft").value) / 100) * SOFTEST * size };
  const ink = rest.getContext("2d");
  ink.globalCompositeOperation = "copy";
  ink.drawImage(canvas, 0, 0);
  extendStroke(point);
  showMaskState();
}

// All of a stroke is drawn at once, so that its soft border does not grow where it overlaps. A soft
// one is the shadow of a stroke beside the canvas.
function extendStroke(point) {
  stroke.points.push(point);
  const away = stroke.deviation > LEAST_SOFT ? 4 * (canvas.width + stroke.radius) : 0;
  pen.save();
  pen.globalCompositeOperation = "copy";
  pen.drawImage(rest, 0, 0);
  pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  pen.strokeStyle = pen.shadowColor = `rgb(${PAINT})`;
  pen.shadowBlur = away ? 2 * stroke.deviation : 0; // as the standard of canvases has it
  pen.shadowOffsetX = away;
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = 2 * stroke.radius;
  pen.beginPath();
  pen.moveTo(stroke.points[0].x - away, stroke.points[0].y);
  for (const { x, y } of stroke.points) pen.lineTo(x - away + 0.01, y);
  pen.stroke();
  pen.restore();
}

function endStroke() {
  if (!stroke) return;
  stroke = null;
  keepStep();
}

// Take back a stroke that is being painted: it was the first finger of two.
function stopStroke() {
  if (!stroke) return;
  stroke = null;
  writeMask(mask);
  showMaskState();
}

function isMoving() {
  return moving;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  cursor.x = (event.clientX - box.left) / box.width;
  cursor.y = (event.clientY - box.top) / box.height;
  drawRing();
  return spot();
}

function spot() {
  return { x: cursor.x * canvas.width, y: cursor.y * canvas.height };
}

function drawRing() {
  const size = (2 * radius() * $("sheet").clientWidth) / canvas.width;
  Object.assign($("ring").style, {
    width: `${size}px`, height: `${size}px`, left: `${100 * cursor.x}%`, top: `${100 * cursor.y}%`,
  });
}

// Move an enlarged picture so that the brush is seen.
function followCursor() {
  const ring = middleOf($("ring").getBoundingClientRect());
  const { left, right, top, bottom } = $("picture").getBoundingClientRect();
  if (!state.zoom || (ring.x > left && ring.x < right && ring.y > top && ring.y < bottom)) return;
  Object.assign(state.zoom, cursor);
  placeSheet();
}

canvas.addEventListener("pointerdown", (event) => {
  if (moving || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  startStroke(place(event));
});
canvas.addEventListener("pointermove", (event) => {
  const point = place(event);
  if (stroke) extendStroke(point);
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, endStroke);
canvas.addEventListener("keydown", (event) => {
  const step = (event.shiftKey ? 0.08 : 0.02) * Math.min(1, fitScale() / scaleNow());
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (moves[event.key]) {
    cursor.x = clamp(cursor.x + moves[event.key][0], 0, 1);
    cursor.y = clamp(cursor.y + moves[event.key][1], 0, 1);
    drawRing();
    followCursor();
  } else if (event.key === " " || event.key === "Enter") {
    startStroke(spot());
    endStroke();
  } else return;
  event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  if (state.mode !== "paint" || event.defaultPrevented || !(event.ctrlKey || event.metaKey)) return;
  if (event.target.matches("textarea, input[type=text], input[type=number]")) return;
  const key = event.key.toLowerCase();
  if (key === "y" || (key === "z" && event.shiftKey)) stepMask(later, earlier);
  else if (key === "z") stepMask(earlier, later);
  else return;
  event.preventDefault();
});

on("brush", "input", drawRing);
on("undo", "click", () => stepMask(earlier, later));
on("redo", "click", () => stepMask(later, earlier));
on("invert-mask", "click", () => changeMask((value) => 255 - value));
on("clear", "click", () => changeMask(() => 0));
on("erase", "click", () => {
  erasing = !erasing;
  $("erase").setAttribute("aria-pressed", String(erasing));
});
on("move", "click", () => {
  moving = !moving;
  $("move").setAttribute("aria-pressed", String(moving));
  $("picture").classList.toggle("moving", moving);
});

function paint() {
  show("paint");
  canvas.focus({ preventScroll: true });
  reveal("frame");
}

on("paint-it", "click", paint);

// Take the region that was found for the picture on show as a mask, to be painted on.
on("repaint", "click", () => {
  touch("mask");
  loadMask(state.view.result.region);
  paint();
});

// The mask, white on black, as a data URL; null where nothing is painted.
function maskUrl() {
  if (loading) return loading;
  if (!painted) return null;
  const values = readMask(); // with a stroke that is being painted
  const grey = make("canvas", { width: canvas.width, height: canvas.height });
  grey.getContext("2d").putImageData(imageOf(values, (value) => [value, value, value, 255]), 0, 0);
  return grey.toDataURL("image/png");
}

// Paint an earlier mask again; it can be undone.
function loadMask(url) {
  loading = null;
  stopStroke();
  if (!url) {
    if (painted) changeMask(() => 0);
    return;
  }
  const image = make("img");
  loading = url;
  showMaskState();
  image.onload = () => {
    if (loading !== url) return; // cleared, or yet another one
    loading = null;
    pen.globalCompositeOperation = "copy";
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    writeMask(mask.map((_, i) => data[4 * i]));
    keepStep();
  };
  image.onerror = () => {
    if (loading !== url) return;
    loading = null;
    showMaskState();
  };
  image.src = url;
}
