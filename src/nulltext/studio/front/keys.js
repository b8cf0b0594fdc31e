// Keys of the whole page, and where the focus goes when the control that had it vanishes.

const touched = matchMedia("(pointer: coarse)").matches;
const BARS = ["top", "alerts", "frame", "dock", "actions"]; // what stays while the page is scrolled
let left = null; // the control that had the focus before it went to a message or to the progress

if (touched) {
  setText("drop-title", "Choose a photo");
  setText("drop-hint", "from this device");
}

// Whether the element can no longer have the focus; `nowhere`: also if nothing had it.
function isLost(held, nowhere = false) {
  if (!held || held === document.body) return nowhere;
  return !held.isConnected ? document.activeElement === document.body : !held.checkVisibility() || Boolean(held.closest("[inert]"));
}

// A text field opens the keyboard of a phone over the picture; there, the step's heading is enough.
function focusFirst(field) {
  const heading = $(field).closest(".step").querySelector("h2");
  heading.tabIndex = -1;
  (touched ? heading : $(field)).focus({ preventScroll: touched });
}

// Where to go on: from progress or a message, back; else to the step that is next.
function focusNext(held) {
  if (($("dock").contains(held) || $("problem").contains(held)) && left && !isLost(left)) left.focus({ preventScroll: true });
  else if (!state.view.photo) $("choose").focus();
  else if (!state.view.inversion || state.reopened) focusFirst("source");
  else $("chips").firstElementChild.focus({ preventScroll: true });
}

document.addEventListener("focusin", ({ target }) => {
  if (!$("dock").contains(target) && !$("problem").contains(target)) left = target;
});

function dismissProblem() {
  const held = document.activeElement;
  showProblem("");
  if (isLost(held)) focusNext(held);
}

// Close what is open, the topmost first; gives whether something was.
function closeTopmost() {
  if (!$("problem").hidden) dismissProblem();
  else if (!$("chip-editor").hidden) {
    const index = state.picked;
    const inside = $("chip-editor").contains(document.activeElement);
    state.picked = null;
    drawChips();
    if (inside) $("chips").children[index].focus();
  } else if (state.mode === "paint") {
    show(state.view.result ? "compare" : "photo");
    $("views").querySelector("[aria-pressed=true]").focus();
  } else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (closeTopmost()) event.preventDefault();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && state.view.photo) {
    event.preventDefault();
    if (!event.repeat) $(state.view.inversion && !state.reopened ? "edit" : "invert").click();
  }
});

on("keys-shown", "click", () => $("keys").showModal());
on("keys-close", "click", () => $("keys").close());

// What is scrolled into view shall not lie below a bar that stays.
function measureBars() {
  let above = 0;
  let below = 0;
  for (const bar of BARS.map($)) {
    const { position, top, bottom } = getComputedStyle(bar);
    if (bar.offsetHeight === 0 || (position !== "sticky" && position !== "fixed")) continue;
    if (position === "sticky" && top !== "auto") above = Math.max(above, parseFloat(top) + bar.offsetHeight);
    else below = Math.max(below, parseFloat(bottom) + bar.offsetHeight);
  }
  document.documentElement.style.setProperty("--above", `${above}px`);
  document.documentElement.style.setProperty("--below", `${below}px`);
  const editor = $("editor").offsetTop; // lower while a message is shown; 0 while it is hidden
  if (editor) document.documentElement.style.setProperty("--editor", `${editor}px`);
}

// A browser shows the line with the caret; a bar shall not cover the other lines either.
document.addEventListener("focusin", ({ target }) => {
  if (target.matches("textarea")) target.scrollIntoView({ block: "nearest" });
});

const bars = new ResizeObserver(measureBars);
for (const id of BARS) bars.observe($(id));
window.addEventListener("resize", measureBars);
