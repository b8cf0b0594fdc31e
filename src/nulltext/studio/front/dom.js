// The state of this page, and small helpers.

const $ = (id) => document.querySelector(`[data-id="${id}"]`);
const rules = JSON.parse($("rules").textContent);
const VERBS = rules.verbs;
const PREEMPTIBLE = ["propose", "look", "cancel", "zoom", "fade"]; // while others run, nothing else can be made
const NOTHING = { serial: 0, photo: null, words: [], strip: [], history: [], fields: {}, filled: {}, running: [],
  base: null, inversion: null, look: null, export: null, wrong: null, result: null, progress: null, problem: null, notice: null };
const state = { requests: 0, lost: false, ...fresh() };
// requests: number of requests so far; each has its number
// lost: whether the link to the server is

// What belongs to the session on show.
function fresh() {
  return {
    session: null,
    view: NOTHING,
    mode: "photo", // what the stage shows: photo, look, paint, compare
    zoom: null, // {scale, x, y}, see zoom.js; null: all of the picture
    crop: null, // [x, y, width, height] in the photo's pixels
    chips: [],
    picked: null, // index of the chip in the editor
    reopened: false, // whether step 1 is open again after an inversion
    touched: {}, // by field: `requests` when the user changed it last
    filled: {}, // by field: the server's last revision that was shown
    waiting: Object.fromEntries(VERBS.map((verb) => [verb, 0])), // requests that were not answered, by verb
    sent: null, // the crop that is being inverted
    pinned: null, // number of the pinned edit
    opacities: {}, // by edits' numbers: what was chosen and is not in their files yet
    sliding: false, // whether it is being chosen
    looked: 0, // numbers of the last requests
    edited: 0,
    exporting: null,
    draft: null, // what was on screen before a reload, until the first view is there
  };
}

// Whether a request waits for the server, or the server is at it.
function isAsked(verb) {
  return state.waiting[verb] > 0 || state.view.running.includes(verb);
}

// A field that the user changed after a request keeps its value when the answer arrives.
function touch(field) {
  state.touched[field] = state.requests;
}

// Of another page's request it is not known what came first: it keeps what was not sent since.
function untouched(field, number, page = PAGE) {
  return !(state.touched[field] >= (page === PAGE ? number : state.requests));
}

document.addEventListener("input", (event) => touch(event.target.dataset.id));

function on(id, event, call) {
  $(id).addEventListener(event, call);
}

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function setHidden(id, hidden) {
  if ($(id).hidden !== hidden) $(id).hidden = hidden;
}

function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function setPicture(id, url) {
  if ($(id).getAttribute("src") !== (url || "")) {
    if (url) $(id).src = url;
    else $(id).removeAttribute("src");
  }
}

// A button that cannot be used now keeps the focus; its clicks are ignored.
function setUnusable(id, unusable) {
  $(id).setAttribute("aria-disabled", String(unusable));
}

document.addEventListener("click", (event) => {
  if (!event.target.closest("[aria-disabled=true]")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);

// Replace the children; the focus goes to the element with the same key.
function redraw(id, children) {
  const held = $(id).contains(document.activeElement) ? document.activeElement.dataset.key : null;
  $(id).replaceChildren(...children);
  if (held) $(id).querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
}

function showProblem(text) {
  setText("problem-text", text || "");
  setHidden("problem", !text);
  if (text) reveal("problem");
}

let noticeTimer = null;

function showNotice(text) {
  setText("said", text);
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => setText("said", ""), 4000);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// An empty number field is null; one with something else than a number is an error, not empty.
function numberIn(id) {
  if ($(id).validity.badInput) return "no number";
  return $(id).value === "" ? null : Number($(id).value);
}
