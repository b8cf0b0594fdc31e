// What is compared: the photo, or an edit of the history that is pinned, on the left; on the right
// the edit that was chosen, at its opacity.

function opacityOf(edit) {
  return state.opacities[edit.number] ?? edit.opacity;
}

function percent(part) {
  return `${Math.round(100 * part)} %`;
}

// The picture shows it at once; its file can be had when it is what is shown.
function drawOpacity() {
  const { result } = state.view;
  if (!state.sliding && !isAsked("fade")) state.opacities = {}; // written, or it could not be
  if (!result) return;
  const opacity = opacityOf(result);
  if (Number($("opacity").value) !== opacity) $("opacity").value = opacity;
  setText("opacity-now", percent(opacity));
  $("over").style.opacity = opacity;
  for (const id of ["download", "copy", "full"]) setUnusable(id, result.number in state.opacities);
}

on("opacity", "input", () => {
  state.sliding = true;
  state.opacities[state.view.result.number] = Number($("opacity").value);
  drawStage();
});
on("opacity", "change", () => {
  state.sliding = false;
  const { number } = state.view.result;
  state.opacities[number] = Number($("opacity").value);
  ask("fade", { number, opacity: state.opacities[number] });
});

function pinned() {
  return state.view.history.find((edit) => edit.number === state.pinned) || null;
}

function nameOf(edit) {
  const strength = edit.strength === null ? "by hand" : edit.strength;
  return `${edit.label} · ${strength}${edit.opacity < 1 ? ` · ${percent(edit.opacity)}` : ""}`;
}

function comparisonOf(left, right) {
  if (left.number === right.number) return "This edit is pinned: choose another to compare it with.";
  return `On the left “${nameOf(left)}”, on the right “${nameOf(right)}”.`;
}

function pin(number) {
  state.pinned = number;
  show("compare");
  drawTiles();
  reveal("picture");
}

// Both sides have their names where neither is the photo.
function drawPinned() {
  const { result } = state.view;
  const left = result && pinned();
  $("picture").classList.toggle("pinning", Boolean(left));
  setPicture("pinned", left && bestOf(left));
  if (left) $("pinned").style.opacity = opacityOf(left);
  const [before, after] = left ? [nameOf(left), nameOf(result)] : ["Before", "After"];
  setText("tag-before", before);
  setText("tag-after", after);
  const button = $("views").querySelector("[data-view=compare]");
  button.textContent = left ? "Pinned | Selected" : "Before | After";
  const sides = left ? `“${before}” and “${after}”` : "before and after";
  $("split").setAttribute("aria-label", `Divider between ${sides}`);
  setHidden("unpin", !left);
}

// The button beside an edit of the history.
function pinButton(edit) {
  const button = make("button", { type: "button", className: "pin", textContent: "Pin" });
  button.dataset.key = `pin-${edit.number}`;
  button.setAttribute("aria-label", `Pin “${nameOf(edit)}”`);
  button.setAttribute("aria-pressed", String(edit.number === state.pinned));
  button.addEventListener("click", () => pin(edit.number === state.pinned ? null : edit.number));
  return button;
}

on("unpin", "click", () => {
  const key = `pin-${state.pinned}`;
  pin(null);
  $("history").querySelector(`[data-key="${key}"]`)?.focus({ preventScroll: true });
});
