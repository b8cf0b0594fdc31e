// Zoom and pan: all layers lie on a sheet in the picture, which is enlarged and moved about below the
// divider. A scale counts device pixels per pixel of the photo: at 1, each is shown as it is.

const MOST_SCALE = 8;
const KEY_FACTOR = 1.5; // of the buttons and keys
const WHEEL_RATE = 0.01; // ln(factor) per pixel that is scrolled
const MOST_WHEEL = 25; // pixels of one event: a mouse's notch is 100, a touchpad's pinch a few
const WHEEL_LINE = 16; // pixels
const KEY_STEP = 0.1; // of the picture's width, per arrow key
const TAP = { time: 350, distance: 24 }; // between the two of a double click: ms, pixels
const DIVIDER_REACH = touchable() ? 24 : 14; // pixels beside the divider that drag it
const RIGHTS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const pointers = new Map(); // places of the pointers that are down, by id
const coming = new Set(); // full-size pictures that are being loaded
const arrived = new Set(); // those that the browser has
const requested = new Set(); // pictures whose full size was requested
let zoomed = null; // address of the photo that the zoom belongs to
let grasp = null; // what the pointer drags: "pan", "divider" or "pinch"
let pinch = null; // {distance, scale} when it began
let tap = null; // the last one: {time, x, y}

function touchable() {
  return matchMedia("(pointer: coarse)").matches;
}

function fitScale() {
  return ($("picture").clientWidth * devicePixelRatio) / state.view.photo.width;
}

function scaleNow() {
  return state.zoom ? state.zoom.scale : fitScale();
}

// Size of the sheet in CSS pixels at a scale.
function sheetSize(scale) {
  const { width, height } = state.view.photo;
  return [(width * scale) / devicePixelRatio, (height * scale) / devicePixelRatio];
}

function middleOf(box) {
  return { x: box.left + box.width / 2, y: box.top + box.height / 2 };
}

// Zoom so that the photo's point at `at` (CSS pixels of the window) stays where it is.
function zoomTo(scale, at = middleOf($("picture").getBoundingClientRect())) {
  const fit = fitScale();
  const sheet = $("sheet").getBoundingClientRect();
  const middle = middleOf($("picture").getBoundingClientRect());
  const kept = clamp(scale, Math.min(fit, 1), Math.max(fit, MOST_SCALE));
  const [width, height] = sheetSize(kept);
  if (Math.abs(kept / fit - 1) < 0.005) state.zoom = null;
  else {
    state.zoom = {
      scale: kept,
      x: (at.x - sheet.left) / sheet.width - (at.x - middle.x) / width,
      y: (at.y - sheet.top) / sheet.height - (at.y - middle.y) / height,
    };
  }
  if (!isAsked("zoom")) requested.clear(); // what failed may be asked for once more
  drawStage();
}

function fitPicture() {
  state.zoom = null;
  drawStage();
}

// Move the sheet by CSS pixels; gives whether it could be.
function panBy(dx, dy) {
  if (!state.zoom) return false;
  const { x, y } = state.zoom;
  const [width, height] = sheetSize(state.zoom.scale);
  state.zoom.x -= dx / width;
  state.zoom.y -= dy / height;
  placeSheet();
  return state.zoom.x !== x || state.zoom.y !== y;
}

// The photo's point in the middle of the picture, of which a part of the photo is seen.
function middleWithin(at, part) {
  return part >= 1 ? 0.5 : clamp(at, part / 2, 1 - part / 2);
}

// On whole device pixels, so that 100 % is not blurred.
function onPixel(offset, origin) {
  return Math.round((offset + origin) * devicePixelRatio) / devicePixelRatio - origin;
}

function placeSheet() {
  const box = $("picture").getBoundingClientRect();
  const sheet = $("sheet").style;
  const { zoom } = state;
  $("picture").classList.toggle("zoomed", Boolean(zoom));
  let [left, width] = [0, box.width];
  if (!zoom) sheet.cssText = "";
  else {
    const [wide, high] = sheetSize(zoom.scale);
    zoom.x = middleWithin(zoom.x, box.width / wide);
    zoom.y = middleWithin(zoom.y, box.height / high);
    left = onPixel(box.width / 2 - zoom.x * wide, box.left);
    width = wide;
    const top = onPixel(box.height / 2 - zoom.y * high, box.top);
    sheet.cssText = `left: ${left}px; top: ${top}px; width: ${wide}px; height: ${high}px; right: auto; bottom: auto`;
  }
  if (!width) return; // not shown
  const cut = ((Number($("split").value) / 100) * box.width - left) / width;
  $("picture").style.setProperty("--cut", `${100 * cut}%`);
}

function drawZoom() {
  const { photo } = state.view;
  if (photo.url !== zoomed) {
    state.zoom = null;
    zoomed = photo.url;
  }
  placeSheet();
  drawRing();
  const scale = scaleNow();
  $("zoom-fit").setAttribute("aria-pressed", String(!state.zoom));
  $("zoom-full").setAttribute("aria-pressed", String(scale === 1));
  setText("zoom-now", `${Math.round(100 * scale)} %`);
  requestPixels();
}

// The pictures on show, below and above the divider.
function picturesShown() {
  return state.mode === "compare" ? [state.view.result, pinned()].filter(Boolean) : [];
}

// Have the server write what is zoomed into at its own size.
function requestPixels() {
  const { photo } = state.view;
  const missing = [photo, ...picturesShown()].filter((one) => !one.full && !requested.has(one.url));
  if (!state.zoom || !missing.length) return;
  for (const one of missing) requested.add(one.url);
  ask("zoom", { numbers: missing.filter((one) => one !== photo).map((one) => one.number) });
}

// The address of a picture: its preview, until the browser has every pixel.
function bestOf({ url, full }) {
  if (!full || full === url) return url;
  if (arrived.has(full)) return full;
  if (state.zoom && !coming.has(full)) {
    coming.add(full);
    make("img", { src: full }).decode().then(() => arrived.add(full)).catch(() => {}).finally(() => {
      coming.delete(full);
      if (arrived.has(full)) drawStage();
    });
  }
  return url;
}

// Whether the pointer is where it drags the divider: everywhere, unless the picture is enlarged.
function isAtDivider({ clientX }) {
  if (state.mode !== "compare") return false;
  const box = $("picture").getBoundingClientRect();
  const divider = box.left + (Number($("split").value) / 100) * box.width;
  return !state.zoom || Math.abs(clientX - divider) <= DIVIDER_REACH;
}

function moveDivider({ clientX }) {
  const box = $("picture").getBoundingClientRect();
  $("split").value = (100 * (clientX - box.left)) / box.width;
  $("split").dispatchEvent(new Event("input", { bubbles: true }));
}

// Whether a pointer on this element moves something else: the crop, the brush.
function isTaken(target) {
  return (target === $("paint") && !isMoving()) || $("crop").contains(target);
}

function span() {
  const [a, b] = [...pointers.values()];
  return { distance: Math.max(1, Math.hypot(a.x - b.x, a.y - b.y)), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}

$("picture").addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (pointers.size === 2) {
    stopStroke();
    pinch = { ...span(), scale: scaleNow() };
    grasp = "pinch";
  } else if (pointers.size > 2 || (event.button === 0 && isTaken(event.target))) grasp = null;
  else if (event.button === 0 && isAtDivider(event)) {
    grasp = "divider";
    $("split").focus({ preventScroll: true });
    moveDivider(event);
  } else {
    grasp = event.button < 2 && state.zoom ? "pan" : null;
    if (grasp) $("picture").focus({ preventScroll: true });
  }
  if (grasp === null) return;
  event.stopPropagation();
  if (event.target !== $("crop")) $("picture").setPointerCapture(event.pointerId);
}, true);

$("picture").addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const from = grasp === "pinch" ? span() : before;
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (grasp === "divider") moveDivider(event);
  else if (grasp === "pan") panBy(event.clientX - from.x, event.clientY - from.y);
  else if (grasp === "pinch") {
    const to = span();
    panBy(to.x - from.x, to.y - from.y);
    zoomTo((pinch.scale * to.distance) / pinch.distance, to);
  }
}, true);

for (const end of ["pointerup", "pointercancel"]) {
  window.addEventListener(end, (event) => {
    const isTap = end === "pointerup" && event.button === 0 && grasp !== "pinch" && pointers.has(event.pointerId);
    pointers.delete(event.pointerId);
    grasp = null;
    if (isTap && !(event.target === $("paint") && !isMoving())) noteTap(event);
    else tap = null;
  }, true);
}

// A double click, or two taps: every pixel of that place, or all of the picture again.
function noteTap({ clientX, clientY, timeStamp }) {
  const last = tap;
  tap = { time: timeStamp, x: clientX, y: clientY };
  if (!last || timeStamp - last.time > TAP.time) return;
  if (Math.hypot(clientX - last.x, clientY - last.y) > TAP.distance) return;
  tap = null;
  if (state.zoom) fitPicture();
  else zoomTo(1, { x: clientX, y: clientY });
}

// The browser's own dragging of the divider and scrolling by the middle button are done here.
$("picture").addEventListener("mousedown", (event) => {
  if (event.target === $("split") || event.button === 1) event.preventDefault();
});
$("picture").addEventListener("touchstart", (event) => {
  if (event.target === $("split") || event.touches.length > 1) event.preventDefault();
}, { passive: false });

$("picture").addEventListener("wheel", (event) => {
  const unit = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? WHEEL_LINE : 1;
  if (event.ctrlKey || event.metaKey) {
    const turned = clamp(event.deltaY * unit, -MOST_WHEEL, MOST_WHEEL);
    zoomTo(scaleNow() * Math.exp(-WHEEL_RATE * turned), { x: event.clientX, y: event.clientY });
    event.preventDefault();
  } else if (panBy(-event.deltaX * unit, -event.deltaY * unit)) event.preventDefault();
}, { passive: false });

const ZOOM_KEYS = {
  "+": () => zoomTo(scaleNow() * KEY_FACTOR),
  "=": () => zoomTo(scaleNow() * KEY_FACTOR),
  "-": () => zoomTo(scaleNow() / KEY_FACTOR),
  0: fitPicture,
  1: () => zoomTo(1),
};

$("picture").addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = KEY_STEP * (event.shiftKey ? 4 : 1) * $("picture").clientWidth;
  const [right, down] = (event.target === $("picture") && RIGHTS[event.key]) || [0, 0];
  if (ZOOM_KEYS[event.key]) ZOOM_KEYS[event.key]();
  else if (!panBy(right * step, down * step)) return;
  event.preventDefault();
});

on("zoom-in", "click", ZOOM_KEYS["+"]);
on("zoom-out", "click", ZOOM_KEYS["-"]);
on("zoom-fit", "click", fitPicture);
on("zoom-full", "click", () => zoomTo(1));
new ResizeObserver(() => {
  if (state.view.photo) drawZoom();
}).observe($("picture"));
