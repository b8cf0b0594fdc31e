// The chips: click a word to see its attention, retype it, change its weight, add another.

function drawChips() {
  const words = state.view.words;
  const chips = state.chips.map((chip, index) => {
    const source = chip.source === null ? null : words[chip.source];
    const kind = chip.source === null ? "added" : chip.text !== source ? "changed" : "";
    const button = make("button", { type: "button", className: `chip ${kind}` });
    button.dataset.key = index;
    button.setAttribute("aria-pressed", String(index === state.picked));
    if (kind === "changed") button.append(make("s", {}, source));
    if (chip.text) button.append(make("span", {}, chip.text));
    else if (kind === "added") button.append(make("span", { className: "blank" }, "new word"));
    if (chip.weight !== 1) button.append(make("i", {}, `×${chip.weight}`));
    button.addEventListener("click", () => pick(index === state.picked ? null : index));
    return button;
  });
  const add = make("button", { type: "button", className: "chip plus" }, "+ word");
  add.dataset.key = "plus";
  add.addEventListener("click", () => addAfter(state.chips.length - 1));
  redraw("chips", [...chips, add]);
  drawChipEditor();
}

function drawChipEditor() {
  const chip = state.chips[state.picked];
  setHidden("chip-editor", !chip);
  if (!chip) return;
  if (document.activeElement !== $("word")) $("word").value = chip.text;
  $("weight").value = chip.weight;
  setText("weight-now", `×${chip.weight}`);
}

function pick(index) {
  state.picked = index;
  drawChips();
  const chip = state.chips[index];
  if (!chip || chip.source === null) return;
  state.looked = ask("look", { word: chip.source });
}

function addAfter(index) {
  touch("target");
  state.chips.splice(index + 1, 0, { source: null, text: "", weight: 1, gap: " " });
  pick(index + 1);
  $("word").focus();
}

// Update the target after a chip was changed.
function updateTarget(index) {
  touch("target");
  fitArticle(state.view.words, state.chips, index);
  $("target").value = targetOf(state.chips, $("target").value);
  drawChips();
}

// Update the chips after the target was changed.
function readTarget() {
  state.picked = null;
  state.chips = chipsOf(state.view.words, $("target").value, state.chips);
  drawChips();
}

on("target", "input", readTarget);
on("word", "input", () => {
  state.chips[state.picked].text = $("word").value;
  updateTarget(state.picked);
});
on("weight", "input", () => {
  touch("target");
  state.chips[state.picked].weight = Number($("weight").value);
  drawChips();
});
on("after", "click", () => addAfter(state.picked));
on("remove", "click", () => {
  const index = state.picked;
  if (state.chips[index].source === null) state.chips.splice(index, 1);
  else state.chips[index].text = "";
  state.picked = null;
  updateTarget(index);
  $("chips").children[index].focus();
});
