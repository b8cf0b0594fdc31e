// What can be done with a result: files in other formats, the next edit of a chain, many photos.

const EXACT = "Pixels that the edit left alone keep their values.";
const LOSSY = "JPEG compresses every pixel anew, those that the edit left alone, too.";

for (const kind of Object.keys(rules.exports)) $("kind").append(make("option", { value: kind }, kind === "webp" ? "WebP" : kind.toUpperCase()));

function showFormat() {
  const kind = $("kind").value;
  setHidden("quality-field", kind !== "jpeg");
  setHidden("bits-field", rules.exports[kind].length < 2);
  setHidden("gps-field", !state.view.photo?.has_position);
  setText("export-said", kind === "jpeg" ? LOSSY : EXACT);
}

on("kind", "change", showFormat);
on("formats", "click", () => {
  showFormat();
  $("export").showModal();
});
on("export-make", "click", () => {
  const isShown = (id) => !$(`${id}-field`).hidden;
  state.exporting = ask("export", {
    number: state.view.result.number,
    kind: $("kind").value,
    quality: isShown("quality") ? numberIn("quality") : null,
    bits: isShown("bits") && $("bits").value ? Number($("bits").value) : null,
    gps: isShown("gps") && $("gps").checked,
  });
});

// Download the file that this page asked for, once it is there.
function takeExport({ export: made, problem, wrong }) {
  if (!state.exporting) return;
  const arrived = made && made.ask === state.exporting;
  if (!arrived && !problem) return;
  state.exporting = null;
  if (!wrong || arrived) $("export").close();
  if (arrived) make("a", { href: made.url, download: made.name }).click();
}

on("go-on", "click", () => ask("go_on", { number: state.view.result.number }));
on("from-photo", "click", () => ask("go_on"));

function baseNumber() {
  return state.view.base ? state.view.base.number : null;
}

let shownBase = null; // number of the edit that the chain goes on from

function drawChain() {
  const { base } = state.view;
  setHidden("chain", !base);
  if (base && base.number !== shownBase) $("step-words").scrollIntoView({ block: "nearest" });
  shownBase = baseNumber();
  if (base) setText("chain-said", `Goes on from “${base.label}”. The settings hold for all edits of the chain, the strength for those after the first.`);
}

// A frame that reaches the photo's edge on the sides where the edit stopped short.
on("widen", "click", () => {
  const { photo, inversion, result } = state.view;
  const [x, y, w, h] = inversion.crop;
  const cut = (side) => result.cut.includes(side);
  const [left, top] = [cut("left") ? 0 : x, cut("top") ? 0 : y];
  const right = cut("right") ? photo.width : x + w;
  const bottom = cut("bottom") ? photo.height : y + h;
  state.reopened = true;
  show("photo");
  drawPanel();
  setCrop([left, top, Math.min(right - left, LONGEST * (bottom - top)), Math.min(bottom - top, LONGEST * (right - left))]);
  $("invert").focus();
  showNotice("The frame is wider now. Invert again: the words stay.");
});

// A job for each photo of a folder; only their names are read.
let names = [];

function drawFolder() {
  const { batch } = state.view.result;
  const jobs = names.map((image) => `${JSON.stringify({ image, ...batch.job })}\n`);
  URL.revokeObjectURL($("folder-file").href);
  $("folder-file").href = URL.createObjectURL(new Blob(jobs, { type: "application/jsonl" }));
  $("folder-file").download = batch.name;
  setUnusable("folder-file", !names.length);
  setText("folder-said", names.length ? `${names.length} ${names.length === 1 ? "photo" : "photos"} chosen.` : "Only their names are read; nothing is sent.");
  setText("folder-words", `“${batch.job.source}”`);
  setText("folder-crop", batch.job.size ? "Each photo is edited whole." : "Each photo is edited in its largest square in the middle.");
  setHidden("folder-mask", !state.view.result.mask);
  setText("folder-command", batch.command);
}

on("apply", "click", () => {
  names = [];
  drawFolder();
  $("folder").showModal();
});
on("folder-choose", "change", () => {
  names = [...$("folder-choose").files].map((file) => file.name);
  drawFolder();
});
for (const id of ["export", "folder"]) on(`${id}-close`, "click", () => $(id).close());
