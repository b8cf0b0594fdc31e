// Small helpers, the state of this page, and the one way to ask the server.

const VERBS = ["open", "example", "crop", "propose", "bring", "invert", "look", "spell", "edit",
  "strip", "choose", "restore", "cancel"];
const rules = props.rules;
const $ = (id) => element.querySelector(`[data-id="${id}"]`);
const state = {
  view: { photo: null, words: [], strip: [], history: [], fields: {} },
  mode: "photo", // what the stage shows: photo, look, paint, compare
  crop: null, // [x, y, width, height] in the photo's pixels
  chips: [],
  picked: null, // index of the chip that is being worked on
  reopened: false, // whether step 1 is open again after an inversion
  revision: -1,
  serial: 0,
};

window.nulltextAsks = {};

function ask(verb, data = {}) {
  if (!VERBS.includes(verb)) throw new Error(`no verb ${verb}`);
  window.nulltextAsks[verb] = data;
  trigger(verb);
}

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

function complain(text) {
  setText("problem-text", text || "");
  setHidden("problem", !text);
  if (text) $("problem").scrollIntoView({ block: "nearest" });
}

let saidTimer = null;

function say(text) {
  setText("said", text);
  clearTimeout(saidTimer);
  saidTimer = setTimeout(() => setText("said", ""), 4000);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// An empty number field says nothing.
function numberIn(id) {
  return $(id).value === "" ? null : Number($(id).value);
}

async function send(file, verb) {
  complain("");
  if (file.size > rules.upload_bytes) {
    const most = Math.floor(rules.upload_bytes / 1048576);
    complain(`'${file.name}' has more than ${most} MB, the most that is taken; shrink it first.`);
    return;
  }
  $("root").classList.add("sending");
  try {
    const { path } = await upload(file);
    ask(verb, { file: { path, orig_name: file.name, meta: { _type: "gradio.FileData" } } });
  } catch (error) {
    complain(`'${file.name}' did not arrive; is the studio still running?`);
  } finally {
    $("root").classList.remove("sending");
  }
}
