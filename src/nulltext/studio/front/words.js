// The chips: click a word to see its attention, retype it, change its weight, add another.

const PAUSE = 700; // milliseconds without a key after which a word counts as written

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
    button.append(make("em", { hidden: true }, "not learnt"));
    button.addEventListener("click", () => pick(index === state.picked ? null : index));
    return button;
  });
  const add = make("button", { type: "button", className: "chip plus" }, "+ word");
  add.dataset.key = "plus";
  add.addEventListener("click", () => addAfter(state.chips.length - 1));
  redraw("chips", [...chips, add]);
  markUnknown();
  drawChipEditor();
}

function drawChipEditor() {
  const chip = state.chips[state.picked];
  setHidden("chip-editor", !chip);
  if (!chip) return;
  if (document.activeElement !== $("word")) $("word").value = chip.text;
  $("weight").value = chip.weight;
  setText("weight-now", `×${chip.weight}`);
  drawSuggestions(chip);
}

// Words that the model has not learnt are marked as soon as they are typed, and said in a pause.
let typing = null; // the timer of the pause, while a text is typed

function unknownIn(text, field) {
  const known = rules.known_words;
  return known ? missingWords(text, known, Boolean(typing) && document.activeElement === $(field)) : [];
}

function notLearnt(words) {
  if (!words.length) return "";
  const named = words.map((word) => `“${word}”`).join(", ");
  return words.length === 1
    ? `The model has not learnt ${named}, so it will do little.`
    : `The model has not learnt ${named}, so they will do little.`;
}

// Mark in place: what is drawn anew under a pointer misses its click.
function markUnknown() {
  const inSource = unknownIn($("source").value, "source");
  const shown = inSource.length ? `${notLearnt(inSource)} It knows ${rules.known_words.shown}.` : "";
  setText("source-unknown", shown);
  setHidden("source-unknown", !shown);
  state.chips.forEach((chip, index) => {
    const button = $("chips").children[index];
    const field = index === state.picked ? "word" : "target";
    const unknown = unknownIn(chip.text, field);
    button.classList.toggle("unknown", unknown.length > 0);
    button.lastChild.hidden = !unknown.length;
    if (index !== state.picked) return;
    setText("word-unknown", notLearnt(unknown));
    setHidden("word-unknown", !unknown.length);
  });
}

// Offer known words in the selected word's place: those of its group, or of all where it has none.
function drawSuggestions(chip) {
  const groups = Object.entries((rules.known_words || { groups: {} }).groups);
  const said = [chip.text, state.view.words[chip.source] || ""].map(keyOf);
  const own = groups.filter(([, words]) => words.some((word) => said.includes(word)));
  setHidden("suggestions", !groups.length);
  redraw("suggestions", (own.length ? own : groups).map(([label, words]) => {
    const title = GROUPS[label] || label;
    const coloured = words.filter(isColour).length > words.length / 2;
    const row = make("div", { className: "suggested" }, make("span", {}, title));
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", `${title} that the model knows`);
    for (const word of words) row.append(suggestion(chip, label, word, coloured && isColour(word)));
    return row;
  }));
}

const GROUPS = { kind: "Kinds", colour: "Colours", background: "Backgrounds" };
const isColour = (word) => CSS.supports("color", word);

function suggestion(chip, label, word, coloured) {
  const button = make("button", { type: "button" });
  button.dataset.key = `${label} ${word}`;
  button.setAttribute("aria-pressed", String(keyOf(chip.text) === word));
  if (coloured) {
    const swatch = make("i", { className: "swatch" });
    swatch.style.background = word;
    button.append(swatch);
  }
  button.append(word);
  button.addEventListener("click", () => retype(word));
  return button;
}

function retype(text) {
  touch("word");
  state.chips[state.picked].text = text;
  updateTarget(state.picked);
}

function pick(index) {
  state.picked = index;
  drawChips();
  const chip = state.chips[index];
  if (!chip || chip.source === null) return;
  state.looked = ask("look", { word: chip.source, base: baseNumber() });
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
on("word", "input", () => retype($("word").value));
for (const id of ["source", "word", "target"]) {
  on(id, "input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      typing = null;
      markUnknown();
      setText("heard", notLearnt(unknownIn($(id).value, id)));
    }, PAUSE);
    markUnknown();
  });
}
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
