// Events: a new view arrives and is drawn; buttons send requests.

function receive(view) {
  const { view: before, draft } = state;
  if (view.serial < before.serial) return; // a newer view has arrived before
  const held = document.activeElement;
  const isFirst = before === NOTHING;
  const opened = view.photo && (!before.photo || before.photo.url !== view.photo.url);
  const inverted = view.inversion && (!before.inversion || before.inversion.url !== view.inversion.url);
  const edited = view.result && (!before.result || before.result.number !== view.result.number);
  const looked = view.look && (!before.look || before.look.url !== view.look.url || before.look.word !== view.look.word);
  state.view = view;
  setHidden("welcome", Boolean(view.photo));
  setHidden("editor", !view.photo);
  setHidden("new", !view.photo);
  if (!view.photo) {
    document.title = "nulltext studio";
    setText("name", "");
  }
  const problem = problemOf(view, before);
  showProblem(problem === view.problem && showWrong(view.wrong, problem) ? "" : problem);
  if (view.notice && !isFirst) showNotice(view.notice);
  if (opened && !isFirst) delete state.touched.crop; // it belonged to the photo before
  if (opened) clearMask();
  fill(view, inverted || String(view.words) !== String(before.words));
  if (opened || inverted) {
    state.reopened = false;
    state.picked = null;
  }
  if (!VIEWS[state.mode](view) || ((opened || inverted) && !draft)) state.mode = "photo";
  if (looked && untouched("mode", state.looked)) state.mode = "look";
  if (edited && !(state.mode === "paint" && !untouched("mode", state.edited))) state.mode = "compare";
  if (draft && view.photo) {
    state.draft = null;
    state.reopened = draft.state.reopened;
    state.mode = VIEWS[draft.state.mode](view) ? draft.state.mode : "photo";
    loadMask(draft.mask);
  }
  drawPanel();
  drawDock();
  drawStage();
  if (view.photo) drawTiles();
  if (edited || looked) reveal("picture");
  if (view.strip.length && !before.strip.length) $("strip-tiles").scrollIntoView({ block: "nearest" });
  if (opened && isLost(held, true)) focusFirst("source");
  else if (isLost(held)) focusNext(held);
  if (inverted) setText("heard", `Inverted: ${$("done-figures").textContent}`);
  if (opened && rules.captioner && !$("source").value) ask("propose", { crop: state.crop });
  takeExport(view);
}

function openChosen() {
  if ($("choose").files[0]) openPhoto($("choose").files[0]);
  $("choose").value = "";
}

function problemOf(view, before) {
  if (state.session && !view.photo) return "The studio has not kept this photo; open it again.";
  if (before.boot && view.boot !== before.boot && before.running.length) {
    return "The studio was stopped and runs again; what was being made is to be started once more.";
  }
  return before === NOTHING ? null : view.problem;
}

on("dismiss", "click", dismissProblem);
on("choose", "change", openChosen);
on("bring", "change", () => {
  if ($("bring").files[0]) bringInversion($("bring").files[0]);
  $("bring").value = "";
});
on("new", "click", () => $("choose").click());
on("example", "click", () => openPhoto(null));
on("invert", "click", () => {
  state.sent = state.crop;
  ask("invert", invertForm());
});
on("propose", "click", () => ask("propose", { crop: state.crop }));
on("again", "click", () => {
  state.reopened = true;
  show("photo");
  drawPanel();
  $("source").focus();
});
on("edit", "click", () => (state.edited = ask("edit", editForm())));
on("try", "click", () => ask("strip", editForm()));
on("cancel", "click", () => {
  if (!opening) ask("cancel");
  else {
    opening.abort();
    setOpening(false);
  }
});
on("strength", "input", showValues);
on("threshold", "input", showValues);
on("by-hand", "change", () => {
  setByHand($("by-hand").checked);
  showValues();
});
on("copy", "click", async () => {
  try {
    await navigator.clipboard.writeText(state.view.result.command);
    showNotice("Copied. Run it in the folder of the photo.");
  } catch (error) {
    const range = document.createRange();
    $("command").closest("details").open = true;
    range.selectNodeContents($("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    showNotice("Select and copy it below: this browser does not let a page do that.");
  }
});

// A photo may be dropped anywhere, or pasted.
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    $("root").classList.add("dropping");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("root").classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  $("root").classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (file.name.endsWith(".safetensors") && state.view.photo) bringInversion(file);
  else openPhoto(file);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) openPhoto(file);
});

// Until here nothing on the page answers, so nothing can be pressed in vain.
$("root").inert = false;
start();
openChosen(); // a file may have been chosen meanwhile
