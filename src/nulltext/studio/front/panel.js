// The panel of forms, the progress of the job, and the tiles of edits.

setHidden("propose", !rules.captioner);
setText("about", `Model: ${rules.model}.`);
setPicture("example-picture", rules.example);

function invertForm() {
  return {
    source: $("source").value,
    crop: state.crop,
    ...settingsIn("inverting"),
  };
}

function editForm() {
  return {
    chips: state.chips,
    target: $("target").value,
    strength: numberIn("strength"),
    by_hand: $("by-hand").checked,
    blend: $("blend").value,
    threshold: numberIn("threshold"),
    region: $("region").value,
    base: baseNumber(),
    mask: maskUrl(),
    ...settingsIn("editing"),
  };
}

const TEXTS = { source: "source", target: "target", blend: "blend", region: "region" };
const NUMBERS = { strength: "strength", threshold: "threshold" };
const IDS = { ...TEXTS, ...NUMBERS, ...Object.fromEntries(SETTINGS.map(({ name }) => [name, idOf(name)])), chips: "target" };
const HINT = $("source-hint").textContent;

// Take the server's values for fields: once per revision, and not where the user has changed the
// field since the request.
function fill(view, otherWords) {
  const fields = {};
  for (const [name, [revision, number, page]] of Object.entries(view.filled)) {
    if (revision <= (state.filled[name] || 0)) continue;
    state.filled[name] = revision;
    if (untouched(IDS[name] || name, number, page)) fields[name] = view.fields[name];
    if (name === "source") setText("source-hint", hintOf(view.fields, name in fields));
  }
  for (const [name, id] of Object.entries(TEXTS)) if (name in fields) setValue($(id), fields[name] ?? "");
  for (const [name, id] of Object.entries(NUMBERS)) {
    if (name in fields && fields[name] !== null) setValue($(id), fields[name]);
  }
  if ("strength" in fields && untouched("by-hand", ...view.filled.strength.slice(1))) setByHand(fields.strength === null);
  fillSettings(fields);
  if ("crop" in fields) state.crop = fields.crop;
  if ("mask" in fields) loadMask(fields.mask);
  if ("chips" in fields) {
    state.picked = null;
    state.chips = fields.chips.map((chip) => ({ ...chip }));
    drawChips();
  } else if (otherWords) readTarget();
  markUnknown();
  showValues();
}

// Set a field. Where all of it is selected, to be written over, all of the new text is; a number's
// selection cannot be read, and it is mostly written over.
function setValue(field, value) {
  const { selectionStart, selectionEnd } = field;
  const whole = selectionStart === null || (selectionStart === 0 && selectionEnd === field.value.length);
  field.value = value;
  if (whole && field === document.activeElement) field.select();
}

function hintOf({ source, proposed }, taken) {
  if (!proposed) return HINT;
  const unsure = (proposed.unsure || []).map((word) => `“${word}”`).join(", ");
  const doubt = proposed.known === false ? "was trained on no photos like this one" : unsure && `is not sure of ${unsure}`;
  if (taken) return `Proposed by the captioner${doubt && `, which ${doubt}`}; correct what is wrong.`;
  return `The captioner${doubt && `, which ${doubt},`} proposes “${source}”.`;
}

function setByHand(byHand) {
  $("by-hand").checked = byHand;
  $("strength").disabled = byHand;
  showSettings();
}

function showValues() {
  setText("strength-now", $("by-hand").checked ? "by hand" : $("strength").value);
  setText("threshold-now", $("threshold").value);
}

function drawPanel() {
  const view = state.view;
  const made = view.inversion && !state.reopened;
  setHidden("source-form", Boolean(made));
  setHidden("source-done", !made);
  for (const id of ["step-words", "step-edit", "actions"]) {
    $(id).classList.toggle("later", !made);
    $(id).inert = !made;
  }
  $("step-source").classList.toggle("settled", Boolean(made));
  if (view.inversion) {
    const { prompt, psnr, bound, seconds, cached, steps, method, url, name } = view.inversion;
    setText("done-source", `“${prompt}”`);
    const time = cached ? "at hand already" : `${seconds}\u00a0s`;
    setText("done-figures", `${psnr} of at most ${bound}\u00a0dB · ${method}, ${steps}\u00a0steps · ${time}`);
    $("keep").href = url;
    $("keep").download = name;
  }
  drawChain();
  $("invert").textContent = view.inversion ? "Invert again" : "Invert the photo";
  drawBusy();
}

// Disable buttons whose request would be refused, from the moment that another one is sent.
function drawBusy() {
  const { view } = state;
  const asked = VERBS.filter(isAsked);
  const busy = asked.some((verb) => !PREEMPTIBLE.includes(verb)) || (Boolean(view.progress) && !view.preemptible);
  for (const id of ["invert", "edit", "try", "bring"]) setUnusable(id, busy);
  for (const id of ["go-on", "from-photo"]) setUnusable(id, busy || asked.includes("go_on"));
  setUnusable("example", Boolean(opening));
  setUnusable("export-make", asked.includes("export"));
  setText("export-make", asked.includes("export") ? "Preparing …" : "Download");
  setUnusable("propose", busy || asked.includes("propose"));
  drawOpacity();
}

const OPENING = { doing: "Opening the photo", done: 0, total: 0, ahead: 0, seconds_left: null, curve: [], bound: null };

function drawDock() {
  const now = state.lost ? null : opening ? OPENING : state.view.progress;
  setHidden("dock", !now);
  if (!now) return;
  const waiting = now.ahead > 0;
  setText("doing", waiting ? "Waiting for the model" : now.doing);
  setText("heard", $("doing").textContent);
  $("bar").max = Math.max(1, now.total);
  if (now.total && !waiting) $("bar").value = now.done;
  else $("bar").removeAttribute("value");
  const figures = [];
  if (waiting) figures.push(now.ahead === 1 ? "one job ahead of yours" : `${now.ahead} jobs ahead of yours`);
  if (now.total && !waiting) figures.push(`${now.done} of ${now.total}`);
  if (now.seconds_left !== null && !waiting) figures.push(`about ${Math.max(1, Math.round(now.seconds_left))} s left`);
  if (now.curve.length) {
    figures.push(`${now.curve.at(-1).toFixed(1)} of at most ${now.bound.toFixed(1)} dB`);
  }
  setText("figures", figures.join(" · "));
  drawCurve(now);
}

// PSNR over previews, with the autoencoder's bound as a dashed line on top.
function drawCurve({ curve, bound }) {
  $("curve").classList.toggle("empty", curve.length < 2);
  if (curve.length < 2) return $("curve").replaceChildren();
  const low = Math.min(...curve);
  const height = (value) => 40 - (34 * (value - low)) / Math.max(bound - low, 1e-6);
  const points = curve.map((value, i) => `${(120 * i) / (curve.length - 1)},${height(value)}`);
  $("curve").innerHTML = `<line x1="0" x2="120" y1="${height(bound)}" y2="${height(bound)}" />` +
    `<polyline points="${points.join(" ")}" />`;
}

function tile(entry, verb, label) {
  const button = make("button", { type: "button", className: "tile" });
  const chosen = state.view.result && state.view.result.number === entry.number;
  button.setAttribute("aria-pressed", String(Boolean(chosen)));
  button.title = entry.target;
  button.dataset.key = entry.number;
  const strength = entry.strength === null ? ["by hand"] : [make("i", { className: "unseen" }, "strength "), entry.strength];
  const caption = make("span", {}, label, ...strength, entry.opacity < 1 ? ` · ${percent(entry.opacity)}` : "");
  const picture = make("img", { src: entry.url, alt: "", loading: "lazy" });
  const photo = make("span", { className: "photo" }, picture);
  photo.style.backgroundImage = `url("${state.view.photo.url}")`;
  picture.style.opacity = entry.opacity;
  button.append(photo, caption);
  button.addEventListener("click", () => ask(verb, { number: entry.number }));
  return button;
}

function drawTiles() {
  const { strip, history, result } = state.view;
  setHidden("strip-tiles", !strip.length);
  setHidden("history-tiles", !history.length);
  redraw("strip", strip.map((one) => tile(one, "choose", "")));
  redraw("history", history.map((one) => make("div", { className: "entry" }, tile(one, "restore", `${one.label} · `), pinButton(one))));
  setHidden("outcome", !result);
  if (!result) return;
  const stem = state.view.photo.name.replace(/\.[^.]*$/, "");
  $("download").href = result.download;
  $("download").download = `${result.name}.png`;
  $("full").href = result.download;
  setText("command", result.command);
  setHidden("mask-file", !result.mask);
  $("mask-file").href = result.mask || "";
  $("mask-file").download = `${stem}-mask.png`;
  setHidden("repaint", !result.region);
}
