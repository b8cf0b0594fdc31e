// The picture: which layers are visible, where the crop lies, and the divider.

const VIEWS = {
  photo: () => true,
  look: (view) => Boolean(view.inversion),
  paint: (view) => Boolean(view.inversion),
  compare: (view) => Boolean(view.result),
};
const NOTES = {
  photo: () => {
    if (state.view.progress) return state.view.progress.picture ? "What the model makes of it so far." : "";
    return $("crop").hidden ? "" : "Drag the frame to choose what the model sees; its corner resizes it.";
  },
  look: () => (state.view.look
    ? `Where “${state.view.words[state.view.look.word]}” looks: blue little, orange much.`
    : "Click a word to see where it looks."),
  paint: () => "Paint what may change; everything else keeps the photo's own pixels.",
  compare: () => {
    const { result } = state.view;
    if (!result) return "";
    return pinned() ? comparisonOf(pinned(), result) : outcomeOf(result);
  },
};

function outcomeOf(result) {
  if (opacityOf(result) === 0) return "At an opacity of 0 % it is the photo.";
  if (result.changed === 0) return "No pixel changed; try a higher strength.";
  const rest = result.outside === null ? "the rest is the photo, byte for byte" : `the rest differs by ${result.outside} dB`;
  return [`${result.changed} % of the pixels changed; ${rest}.`, result.remark].filter(Boolean).join(" ");
}

function show(mode) {
  touch("mode");
  state.mode = VIEWS[mode](state.view) ? mode : "photo";
  drawStage();
}

function drawStage() {
  const view = state.view;
  if (!view.photo) return;
  const { width, height, name } = view.photo;
  $("picture").style.setProperty("--ratio", width / height);
  $("picture").dataset.view = state.mode;
  setPicture("base", bestOf(view.photo));
  setPicture("over", view.result && bestOf(view.result));
  drawPinned();
  drawOpacity();
  setPicture("heat", view.look && view.look.url);
  setPicture("live", view.progress && view.progress.picture);
  const framed = state.mode === "photo" && (!view.inversion || state.reopened) && !view.progress;
  $("crop").hidden = !framed;
  placeCrop();
  for (const button of $("views").children) {
    const possible = VIEWS[button.dataset.view](view);
    button.disabled = !possible;
    button.setAttribute("aria-pressed", String(button.dataset.view === state.mode));
  }
  setHidden("views", !view.inversion);
  setHidden("brush-tools", state.mode !== "paint");
  setHidden("widen", !(state.mode === "compare" && view.result?.cut.length));
  setText("note", NOTES[state.mode]());
  setText("name", `${name} · ${width} × ${height}`);
  document.title = `${name} · nulltext studio`;
  $("picture").classList.toggle("working", Boolean(view.progress));
  drawZoom();
}

// Scroll to an element, unless it is seen: one in a bar that stays while the page is scrolled counts
// as covered by that bar, and the page would jump.
function reveal(id) {
  const { top, bottom } = $(id).getBoundingClientRect();
  const covered = Math.max(0, $("top").getBoundingClientRect().bottom);
  if (top < covered - 1 || bottom > window.innerHeight + 1) $(id).scrollIntoView({ block: "nearest" });
}

function placeCrop() {
  const { photo, inversion } = state.view;
  const { width, height } = photo;
  const crops = { crop: state.crop, heat: inversion && inversion.crop, live: state.sent };
  for (const [id, crop] of Object.entries(crops)) {
    const [x, y, w, h] = crop || state.crop;
    const box = $(id).style;
    box.left = `${(100 * x) / width}%`;
    box.top = `${(100 * y) / height}%`;
    box.width = `${(100 * w) / width}%`;
    box.height = `${(100 * h) / height}%`;
  }
}

for (const button of $("views").children) {
  button.addEventListener("click", () => show(button.dataset.view));
}
on("split", "input", () => {
  $("picture").style.setProperty("--split", `${$("split").value}%`);
  placeSheet();
});
