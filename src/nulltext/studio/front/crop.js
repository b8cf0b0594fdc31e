// The movable crop, by pointer and by keys. A square keeps being one.

const SMALLEST = 64; // pixels of the photo
const LONGEST = 4; // proportions beyond which no model has seen a picture

function setCrop([x, y, w, h]) {
  const { width, height } = state.view.photo;
  const least = Math.min(SMALLEST, width, height);
  w = clamp(Math.round(w), least, width);
  h = clamp(Math.round(h), least, height);
  x = clamp(Math.round(x), 0, width - w);
  y = clamp(Math.round(y), 0, height - h);
  state.crop = [x, y, w, h];
  touch("crop");
  placeCrop();
}

function resized(by) {
  const [x, y, w, h] = state.crop;
  const { width, height } = state.view.photo;
  const most = Math.min((width - x) / w, (height - y) / h);
  const factor = clamp((w + by) / w, SMALLEST / Math.min(w, h), most);
  return [x, y, w * factor, h * factor];
}

function dragCrop(event, change) {
  const from = [event.clientX, event.clientY];
  const start = [...state.crop];
  const scale = state.view.photo.width / $("sheet").clientWidth;
  const move = (e) => {
    change(start, (e.clientX - from[0]) * scale, (e.clientY - from[1]) * scale);
    if (pointers.size < 2) return;
    setCrop(start); // a pinch has begun
    stop();
  };
  const stop = () => {
    window.removeEventListener("pointermove", move);
    window.removeEventListener("pointerup", stop);
    window.removeEventListener("pointercancel", stop);
  };
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", stop);
  window.addEventListener("pointercancel", stop);
  event.preventDefault();
  $("crop").focus({ preventScroll: true });
}

on("crop", "pointerdown", (event) => {
  if (event.target === $("grip")) {
    dragCrop(event, (start, dx, dy) => {
      state.crop = start;
      setCrop(resized(Math.max(dx, (dy * start[2]) / start[3])));
    });
  } else {
    dragCrop(event, ([x, y, w, h], dx, dy) => setCrop([x + dx, y + dy, w, h]));
  }
});

on("crop", "keydown", (event) => {
  const step = Math.max(1, Math.round(state.view.photo.width / (event.shiftKey ? 20 : 100)));
  const [x, y, w, h] = state.crop;
  const moves = {
    ArrowLeft: () => [x - step, y, w, h],
    ArrowRight: () => [x + step, y, w, h],
    ArrowUp: () => [x, y - step, w, h],
    ArrowDown: () => [x, y + step, w, h],
    "+": () => resized(step),
    "=": () => resized(step),
    "-": () => resized(-step),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  setCrop(moves[event.key]());
});

on("square", "click", () => {
  const { width, height } = state.view.photo;
  const side = Math.min(width, height);
  setCrop([(width - side) / 2, (height - side) / 2, side, side]);
});

on("whole", "click", () => {
  const { width, height } = state.view.photo;
  const w = Math.min(width, LONGEST * height);
  const h = Math.min(height, LONGEST * width);
  setCrop([(width - w) / 2, (height - h) / 2, w, h]);
});
