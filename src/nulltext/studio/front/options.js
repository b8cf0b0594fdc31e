// The advanced settings: a field for each option of the schema (jobs/options.py), with its text.

const SETTINGS = [...rules.inverting, ...rules.editing];

const OTHER_IDS = { editor: "editor-name" }; // where the page has another part of that name

function idOf(name) {
  return OTHER_IDS[name] || name.replaceAll("_", "-");
}

function controlOf({ kind, choices, default: usual, unset, low, high }) {
  if (kind === "choice") {
    const names = usual ? choices : ["", ...choices];
    return make("select", {}, ...names.map((name) => make("option", { value: name }, name || "default")));
  }
  if (kind === "text" || kind === "texts") {
    const placeholder = kind === "texts" ? "words, with commas between" : "";
    return make("input", { type: "text", autocomplete: "off", placeholder });
  }
  const step = kind === "integer" ? 1 : high === 1 ? 0.05 : 0.5;
  const inputMode = kind === "integer" ? "numeric" : "decimal";
  return make("input", { type: "number", step, inputMode, min: low ?? "", max: high ?? "", placeholder: unset ?? "" });
}

function fieldOf(option) {
  const control = controlOf(option);
  control.dataset.id = idOf(option.name);
  control.setAttribute("aria-describedby", `help-${option.name} wrong-${option.name}`);
  const label = make("label", {}, make("span", {}, option.label), control);
  const help = make("p", { className: "hint", id: `help-${option.name}` }, option.help);
  const wrong = make("p", { className: "wrong", id: `wrong-${option.name}` });
  wrong.dataset.of = option.name;
  wrong.setAttribute("role", "alert"); // there before it is filled
  return make("div", { className: "option" }, label, wrong, help);
}

for (const place of ["inverting", "editing"]) $(place).append(...rules[place].map(fieldOf));

// The settings that are on screen and can be set now.
function settingsIn(place) {
  const given = rules[place].map(({ name }) => [name, $(idOf(name))]);
  const shown = given.filter(([, field]) => !field.disabled && !field.closest("[hidden]"));
  return Object.fromEntries(shown.map(([name, field]) => [name, field.type === "number" ? numberIn(field.dataset.id) : field.value]));
}

function fillSettings(fields) {
  for (const { name, default: usual } of SETTINGS) {
    if (name in fields) setValue($(idOf(name)), [fields[name] ?? usual ?? ""].flat().join(", "));
  }
  showSettings();
}

// Only the settings of the chosen editor; those that the strength sets, only by hand.
function showSettings() {
  const byHand = $("by-hand").checked;
  for (const { name, editor, by_strength } of rules.editing) {
    const field = $(idOf(name));
    const other = editor !== null && editor !== $(idOf("editor")).value;
    if (field.closest(".option").hidden !== other) field.closest(".option").hidden = other;
    if (by_strength) field.disabled = !byHand;
  }
  const method = $("method").value;
  $("budget").disabled = method !== "";
  $("steps").placeholder = method ? rules.methods[method] : rules.budgets[$("budget").value || rules.budget];
}

// Say beside a field what is wrong with it; gives whether there is such a field.
function showWrong(name, text) {
  let found = false;
  for (const said of document.querySelectorAll(".wrong")) {
    const here = Boolean(text) && said.dataset.of === name;
    $(idOf(said.dataset.of)).setAttribute("aria-invalid", String(here));
    found ||= here;
    const now = here ? text : "";
    if (said.textContent === now) continue;
    said.textContent = now;
    if (!here) continue;
    const fold = said.closest("details");
    if (fold) fold.open = true;
    said.parentElement.scrollIntoView({ block: "nearest" });
  }
  return found;
}

$("root").addEventListener("input", ({ target }) => {
  if (target.getAttribute("aria-invalid") === "true") showWrong(null, "");
});
for (const id of [idOf("editor"), "method", "budget", "by-hand"]) on(id, "change", showSettings);
$("guidance").placeholder = rules.usual_guidance;
showSettings();
