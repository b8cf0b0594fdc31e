// Events: a new view arrives and is drawn; buttons send requests.

function receive(view) {
  if (!view || view.serial < state.serial) return; // a newer view has arrived before
  const before = state.view;
  const held = document.activeElement;
  state.view = view;
  state.serial = view.serial;
  const fresh = view.photo && (!before.photo || before.photo.url !== view.photo.url);
  const inverted = view.inversion && (!before.inversion || before.inversion.url !== view.inversion.url);
  const edited = view.result && (!before.result || before.result.number !== view.result.number);
  const looked = view.look && (!before.look || before.look.url !== view.look.url || before.look.word !== view.look.word);
  setHidden("welcome", Boolean(view.photo));
  setHidden("editor", !view.photo);
  setHidden("new", !view.photo);
  showProblem(showWrong(view.wrong, view.problem) ? "" : view.problem);
  if (view.notice) showNotice(view.notice);
  if (fresh) {
    state.touched.crop = state.touched.mask = 0; // they belonged to the last photo
    clearMask();
  }
  fill(view, inverted || String(view.words) !== String(before.words));
  if (fresh || inverted) {
    state.reopened = false;
    state.picked = null;
  }
  if (!VIEWS[state.mode](view) || fresh || inverted) state.mode = "photo";
  if (looked && untouched("mode", state.looked)) state.mode = "look";
  if (edited && !(state.mode === "paint" && !untouched("mode", state.edited))) state.mode = "compare";
  drawPanel();
  drawDock();
  drawStage();
  if (view.photo) drawTiles();
  if (edited || looked) $("picture").scrollIntoView({ block: "nearest" });
  if (view.strip.length && !before.strip.length) $("strip-tiles").scrollIntoView({ block: "nearest" });
  if (fresh && isLost(held, true)) focusFirst("source");
  else if (isLost(held)) focusNext(held);
  if (inverted) setText("heard", `Inverted: ${$("done-figures").textContent}`);
  if (fresh && rules.captioner && !$("source").value) ask("propose", { crop: state.crop });
  takeExport(view);
}

watch("value", () => receive(props.value));

on("dismiss", "click", dismissProblem);
on("choose", "change", () => {
  if ($("choose").files[0]) send($("choose").files[0], "open");
  $("choose").value = "";
});
on("bring", "change", () => {
  if ($("bring").files[0]) send($("bring").files[0], "bring");
  $("bring").value = "";
});
on("new", "click", () => $("choose").click());
on("example", "click", () => ask("example"));
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
on("cancel", "click", () => ask("cancel"));
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
  element.addEventListener(name, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    $("root").classList.add("dropping");
  });
}
element.addEventListener("dragleave", (event) => {
  if (!element.contains(event.relatedTarget)) $("root").classList.remove("dropping");
});
element.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  $("root").classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  send(file, file.name.endsWith(".safetensors") && state.view.photo ? "bring" : "open");
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) send(file, "open");
});
