// The state of this page, requests to the server, and small helpers.

const rules = props.rules;
const VERBS = rules.verbs;
const PREEMPTIBLE = ["propose", "look", "cancel", "zoom", "fade"]; // while others run, nothing else can be made
const $ = (id) => element.querySelector(`[data-id="${id}"]`);
const state = {
  view: { photo: null, words: [], strip: [], history: [], fields: {} },
  mode: "photo", // what the stage shows: photo, look, paint, compare
  zoom: null, // {scale, x, y}, see zoom.js; null: all of the picture
  crop: null, // [x, y, width, height] in the photo's pixels
  chips: [],
  picked: null, // index of the chip in the editor
  reopened: false, // whether step 1 is open again after an inversion
  serial: 0,
  requests: 0, // number of requests so far; each has its number
  touched: {}, // by field: `requests` when the user changed it last
  filled: {}, // by field: the server's last revision that was shown
  waiting: Object.fromEntries(VERBS.map((verb) => [verb, 0])), // requests that have not ended, by verb
  sent: null, // the crop that is being inverted
};

// Requests hold what is on screen when they are made, whatever Gradio does before it sends them.
window.nulltextRequests = Object.fromEntries(VERBS.map((verb) => [verb, []]));
window.nulltextEnded = (verb) => {
  state.waiting[verb] = Math.max(0, state.waiting[verb] - 1);
  drawBusy();
};

function ask(verb, data = {}, number = (state.requests += 1)) {
  window.nulltextRequests[verb].push({ ...structuredClone(data), ask: number });
  state.waiting[verb] += 1;
  trigger(verb);
  drawBusy();
  return number;
}

// A field that the user changed after a request keeps its value when the answer arrives.
function touch(field) {
  state.touched[field] = state.requests;
}

function untouched(field, number) {
  return !(state.touched[field] >= number);
}

element.addEventListener("input", (event) => touch(event.target.dataset.id));

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

element.addEventListener("click", (event) => {
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
  if (text) $("problem").scrollIntoView({ block: "nearest" });
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

let sending = 0; // number of the file that was chosen last

async function send(file, verb) {
  showProblem("");
  if (file.size > rules.upload_bytes) {
    const most = Math.floor(rules.upload_bytes / 1048576);
    showProblem(`'${file.name}' has more than ${most} MB, the most that is taken; shrink it first.`);
    return;
  }
  $("root").classList.add("sending");
  const number = sending = state.requests += 1;
  try {
    const { path } = await upload(file);
    if (number !== sending) return; // another one was chosen meanwhile
    ask(verb, { file: { path, orig_name: file.name, meta: { _type: "gradio.FileData" } } }, number);
  } catch (error) {
    showProblem(`'${file.name}' did not arrive; is the studio still running?`);
  } finally {
    if (number === sending) $("root").classList.remove("sending");
  }
}
