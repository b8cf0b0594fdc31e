// Paint a mask over the photo: coloured on the page, white on black for the server.

const PAINT = [0x2f, 0xc8, 0xff];
const MASK_SIDE = 1024;
const canvas = $("paint");
const pen = canvas.getContext("2d");
const cursor = { x: 0.5, y: 0.5 };
let erasing = false;
let painted = false;
let loading = null; // address of an earlier mask that is on its way to the canvas

function clearMask() {
  loading = null;
  const photo = state.view.photo;
  if (!photo) return;
  const scale = Math.min(1, MASK_SIDE / Math.max(photo.width, photo.height));
  canvas.width = Math.max(1, Math.round(photo.width * scale));
  canvas.height = Math.max(1, Math.round(photo.height * scale));
  painted = false;
  showMaskState();
}

function showMaskState() {
  setText("mask-said", painted ? "A mask is painted." : "");
  setText("paint-it", painted ? "Change the mask" : "Paint a mask");
}

function radius() {
  return (Number($("brush").value) / 200) * Math.min(canvas.width, canvas.height);
}

function drawDot(x, y, from = { x, y }) {
  if (loading) return;
  touch("mask");
  pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  pen.strokeStyle = `rgb(${PAINT})`;
  pen.lineCap = "round";
  pen.lineWidth = 2 * radius();
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(x + 0.01, y);
  pen.stroke();
  painted = painted || !erasing;
  showMaskState();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const spot = {
    x: ((event.clientX - box.left) / box.width) * canvas.width,
    y: ((event.clientY - box.top) / box.height) * canvas.height,
  };
  cursor.x = spot.x / canvas.width;
  cursor.y = spot.y / canvas.height;
  drawRing();
  return spot;
}

function drawRing() {
  const size = (2 * radius() * canvas.clientWidth) / canvas.width;
  Object.assign($("ring").style, {
    width: `${size}px`, height: `${size}px`, left: `${100 * cursor.x}%`, top: `${100 * cursor.y}%`,
  });
}

let last = null;
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  drawDot(last.x, last.y);
});
canvas.addEventListener("pointermove", (event) => {
  const spot = place(event);
  if (!last) return;
  drawDot(spot.x, spot.y, last);
  last = spot;
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
canvas.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 0.08 : 0.02;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (moves[event.key]) {
    cursor.x = clamp(cursor.x + moves[event.key][0], 0, 1);
    cursor.y = clamp(cursor.y + moves[event.key][1], 0, 1);
    drawRing();
  } else if (event.key === " " || event.key === "Enter") {
    drawDot(cursor.x * canvas.width, cursor.y * canvas.height);
  } else return;
  event.preventDefault();
});

on("brush", "input", drawRing);
on("clear", "click", () => {
  touch("mask");
  clearMask();
});
on("erase", "click", () => {
  erasing = !erasing;
  $("erase").setAttribute("aria-pressed", String(erasing));
});
on("paint-it", "click", () => {
  show("paint");
  drawRing();
  canvas.focus({ preventScroll: true });
  $("frame").scrollIntoView({ block: "nearest" });
});

// Take the region that was found for the picture on show as a mask, to be painted on.
on("repaint", "click", () => {
  touch("mask");
  loadMask(state.view.result.region);
  show("paint");
  canvas.focus({ preventScroll: true });
  $("frame").scrollIntoView({ block: "nearest" });
});

// The mask, white on black, as a data URL; null where nothing is painted.
function maskUrl() {
  if (loading) return loading;
  if (!painted) return null;
  const sheet = make("canvas", { width: canvas.width, height: canvas.height });
  const ink = sheet.getContext("2d");
  ink.drawImage(canvas, 0, 0);
  ink.globalCompositeOperation = "source-in";
  ink.fillStyle = "#fff";
  ink.fillRect(0, 0, sheet.width, sheet.height);
  ink.globalCompositeOperation = "destination-over";
  ink.fillStyle = "#000";
  ink.fillRect(0, 0, sheet.width, sheet.height);
  return sheet.toDataURL("image/png");
}

// Paint an earlier mask again.
function loadMask(url) {
  clearMask();
  if (!url) return;
  const image = make("img");
  loading = url;
  painted = true;
  showMaskState();
  image.onload = () => {
    if (loading !== url) return; // cleared, or yet another one
    loading = null;
    pen.globalCompositeOperation = "copy";
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const sheet = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < sheet.data.length; i += 4) {
      const white = sheet.data[i];
      sheet.data.set([...PAINT, white], i);
    }
    pen.putImageData(sheet, 0, 0);
  };
  image.onerror = () => {
    if (loading === url) clearMask();
  };
  image.src = url;
}
