// Words as handles: click one to see where it looks, retype it, weigh it, add another.

function drawChips() {
  const held = document.activeElement && document.activeElement.dataset.chip;
  const words = state.view.words;
  const chips = state.chips.map((chip, index) => {
    const source = chip.source === null ? null : words[chip.source];
    const kind = chip.source === null ? "added" : chip.text !== source ? "changed" : "";
    const button = make("button", { type: "button", className: `chip ${kind}` });
    button.dataset.chip = index;
    button.setAttribute("aria-pressed", String(index === state.picked));
    if (kind === "changed") button.append(make("s", {}, source));
    if (chip.text) button.append(make("span", {}, chip.text));
    else if (kind === "added") button.append(make("span", { className: "blank" }, "new word"));
    if (chip.weight !== 1) button.append(make("i", {}, `×${chip.weight}`));
    button.addEventListener("click", () => pick(index === state.picked ? null : index));
    return button;
  });
  const add = make("button", { type: "button", className: "chip plus" }, "+ word");
  add.dataset.chip = "plus";
  add.addEventListener("click", () => addAfter(state.chips.length - 1));
  $("chips").replaceChildren(...chips, add);
  if (held !== undefined) {
    const again = $("chips").querySelector(`[data-chip="${held}"]`);
    if (again) again.focus({ preventScroll: true });
  }
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

function pick(index, { looking = true } = {}) {
  state.picked = index;
  drawChips();
  const chip = state.chips[index];
  if (!chip || chip.source === null || !looking) return;
  ask("look", { word: chip.source });
}

function addAfter(index) {
  state.chips.splice(index + 1, 0, { source: null, text: "", weight: 1 });
  pick(index + 1);
  $("word").focus();
}

function respell() {
  state.typing = false;
  drawChips();
  ask("spell", { chips: state.chips });
}

on("word", "input", () => {
  state.typing = true; // what the server says of the words is older
  state.chips[state.picked].text = $("word").value;
  drawChips();
});
on("word", "change", respell);
on("word", "keydown", (event) => {
  if (event.key === "Enter") respell();
});
on("weight", "input", () => {
  state.chips[state.picked].weight = Number($("weight").value);
  drawChips();
});
on("after", "click", () => addAfter(state.picked));
on("remove", "click", () => {
  const chip = state.chips[state.picked];
  if (chip.source === null) state.chips.splice(state.picked, 1);
  else chip.text = "";
  state.picked = null;
  respell();
});
