// The link to the server: which session the page shows, its requests, the stream of views, files.
//
// A session is one photo and what was made of it. The page makes its name, which no one can guess,
// and keeps it in the browser's history: a reload shows the same photo, Back the one before.

const PAGE = randomName();
const SILENCE = 20_000; // milliseconds without a sign of life after which the link counts as lost
const RETRY = 1000;
const GATEWAY = [502, 503, 504]; // what a proxy says when it does not reach the studio
const RECENT = 12; // photos that the start page offers
const asks = []; // requests that were not answered yet, in their order
let stream = null; // the controller of the stream that is read
let turn = 0; // number of that stream
let opening = null; // the controller of the photo that is being opened

class Lost extends Error {} // the server cannot be reached

function randomName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

// Send one request; gives the answer's JSON.
async function post(path, body, { session = state.session, signal } = {}) {
  let answer;
  let said;
  try {
    answer = await fetch(path, { method: "POST", headers: { Session: session || "" }, body, signal });
    said = await answer.json().catch(() => (answer.ok ? Promise.reject() : {}));
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Lost();
  }
  if (GATEWAY.includes(answer.status)) throw new Lost();
  if (answer.status === 401) logIn();
  if (!answer.ok) throw new Error(said.problem || `The studio failed (${answer.status}); the terminal that runs it says why.`);
  return said;
}

// Requests hold what is on screen when they are made. They are sent one after the other, again if
// the link is lost: the server knows them by the page's name and their number.
function ask(verb, data = {}, number = (state.requests += 1)) {
  asks.push({ verb, session: state.session, body: JSON.stringify({ ...data, page: PAGE, ask: number }) });
  state.waiting[verb] += 1;
  drawBusy();
  if (asks.length === 1) sendAsks();
  return number;
}

async function sendAsks() {
  while (asks.length) {
    const [{ verb, session, body }] = asks;
    let view = null;
    let problem = null;
    try {
      view = await post(`ask/${verb}`, body, { session });
    } catch (error) {
      if (error instanceof Lost) {
        setLost(true);
        await pause(RETRY);
        continue;
      }
      problem = error.message;
    }
    asks.shift();
    if (session !== state.session) continue; // another photo is shown now
    state.waiting[verb] -= 1;
    if (view) receive(view);
    if (problem) showProblem(problem);
    drawBusy();
  }
}

// Read views for as long as the session is shown; begin again whenever the link breaks.
async function follow() {
  const mine = (turn += 1);
  stream?.abort();
  while (turn === mine) {
    const alive = await readViews(mine);
    if (turn === mine && !alive) setLost(true);
    await pause(alive ? 0 : RETRY);
  }
}

// Read a stream to its end; gives whether there was a sign of life.
async function readViews(mine) {
  const own = (stream = new AbortController());
  const end = () => own.abort();
  let timer = setTimeout(end, SILENCE);
  let alive = false;
  const headers = state.session ? { Session: state.session } : {};
  const answer = await fetch("events", { headers, signal: own.signal }).catch(() => null);
  if (answer?.status === 401) logIn();
  if (answer?.ok) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const read = () => reader.read().catch(() => ({ done: true })); // the link broke
    let rest = "";
    for (let next = await read(); !next.done && turn === mine; next = await read()) {
      clearTimeout(timer);
      timer = setTimeout(end, SILENCE);
      alive = true;
      setLost(false);
      const lines = (rest + next.value).split("\n");
      rest = lines.pop();
      const newest = lines.findLast((line) => line);
      if (newest) receive(JSON.parse(newest));
    }
  }
  clearTimeout(timer);
  own.abort();
  return alive;
}

// The page asks for the password, and comes back to the session.
function logIn() {
  sessionStorage.setItem("nulltext-return", state.session || "");
  location.reload();
}

function start() {
  const back = sessionStorage.getItem("nulltext-return");
  sessionStorage.removeItem("nulltext-return");
  if (back) history.replaceState({ session: back }, "");
  enter(history.state?.session ?? null);
}

function setLost(lost) {
  if (state.lost === lost) return;
  state.lost = lost;
  setHidden("lost", !lost);
  drawDock();
}

// Show a session; null: none, the start page.
function enter(session) {
  keepDraft();
  Object.assign(state, fresh(), { session });
  if (session) {
    takeDraft();
    remember(session);
  } else {
    receive(state.view);
    drawRecent();
  }
  follow();
}

window.addEventListener("popstate", () => enter(history.state?.session ?? null));
window.addEventListener("pagehide", () => keepDraft());

// Browsers allow few links to one server at a time; a page that nobody sees leaves its own to others.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) follow();
  else if (!state.view.progress && !asks.length) {
    turn += 1;
    stream?.abort();
  }
});

function isTooLarge(file) {
  const most = Math.floor(rules.upload_bytes / 1048576);
  if (file.size > rules.upload_bytes) {
    showProblem(`'${file.name}' has more than ${most} MB, the most that is taken; shrink it first.`);
  }
  return file.size > rules.upload_bytes;
}

async function upload(file, session, signal) {
  return (await post(`files?name=${encodeURIComponent(file.name)}`, file, { session, signal })).file;
}

// Open a photo in a session of its own, so that the one before stays as it is; `file` null: the
// example. One that is chosen later takes the place of this.
async function openPhoto(file) {
  showProblem("");
  if (file && isTooLarge(file)) return;
  opening?.abort();
  const own = (opening = new AbortController());
  const session = randomName();
  const number = (state.requests += 1);
  setOpening(true);
  try {
    const data = file ? { file: await upload(file, session, own.signal) } : {};
    const body = JSON.stringify({ ...data, page: PAGE, ask: number });
    const view = await post(`ask/${file ? "open" : "example"}?wait=1`, body, { session, signal: own.signal });
    if (own.signal.aborted) return;
    setOpening(false);
    if (view.photo) {
      history.pushState({ session }, "");
      enter(session);
      receive(view);
    } else showProblem(view.problem);
  } catch (error) {
    if (own.signal.aborted) return;
    setOpening(false);
    showProblem(error instanceof Lost ? `'${file ? file.name : "The dahlia"}' did not arrive; is the studio still running?` : error.message);
  }
}

function setOpening(isOpening) {
  $("root").classList.toggle("sending", isOpening);
  if (!isOpening) opening = null;
  drawBusy();
  drawDock();
}

async function bringInversion(file) {
  showProblem("");
  if (isTooLarge(file)) return;
  const { session } = state;
  const number = (state.requests += 1);
  const own = (state.bringing = {});
  try {
    const arrived = await upload(file, session);
    if (session === state.session && own === state.bringing) ask("bring", { file: arrived }, number);
  } catch (error) {
    showProblem(error instanceof Lost ? `'${file.name}' did not arrive; is the studio still running?` : error.message);
  }
}

// Photos that this browser has opened.

function known() {
  return JSON.parse(localStorage.getItem("nulltext-photos") || "[]");
}

function remember(session) {
  const all = [session, ...known().filter((one) => one !== session)];
  localStorage.setItem("nulltext-photos", JSON.stringify(all.slice(0, RECENT)));
}

async function drawRecent() {
  const sessions = known();
  setHidden("recent-tiles", true);
  if (!sessions.length || !rules.kept) return;
  const { photos } = await post("recent", JSON.stringify({ ids: sessions })).catch(() => ({ photos: [] }));
  setHidden("recent-tiles", !photos.length);
  $("recent").replaceChildren(...photos.map(recentTile));
}

function recentTile({ id, name, url, edits }) {
  const open = make("button", { type: "button", className: "tile", title: name });
  open.append(make("img", { src: url, alt: "", loading: "lazy" }), make("span", {}, `${name} · ${edits === 1 ? "1 edit" : `${edits} edits`}`));
  open.addEventListener("click", () => {
    history.pushState({ session: id }, "");
    enter(id);
  });
  const drop = make("button", { type: "button", className: "quiet", title: "Remove this photo and its edits" }, "Remove");
  drop.setAttribute("aria-label", `Remove ${name} and its edits`);
  drop.addEventListener("click", async () => {
    if (!confirm(`Remove ${name}, its inversions and its edits for good?`)) return;
    localStorage.setItem("nulltext-photos", JSON.stringify(known().filter((one) => one !== id)));
    await post("forget", "{}", { session: id }).catch((error) => showProblem(error.message));
    drawRecent();
  });
  return make("div", {}, open, drop);
}

// What is on screen and was not sent is kept over a reload.

function editorFields() {
  return [...$("editor").querySelectorAll("textarea, select, input:not([type=file])")];
}

function keepDraft() {
  if (!state.session || !state.view.photo) return;
  const fields = editorFields().map((field) => [field.dataset.id, field.type === "checkbox" ? field.checked : field.value]);
  const { crop, chips, touched, filled, requests, reopened, mode } = state;
  const draft = { fields, mask: maskUrl(), state: { crop, chips, touched, filled, requests, reopened, mode } };
  try {
    sessionStorage.setItem(`nulltext ${state.session}`, JSON.stringify(draft));
  } catch (error) {
    sessionStorage.clear(); // it is full of drafts of other photos
  }
}

function takeDraft() {
  const draft = JSON.parse(sessionStorage.getItem(`nulltext ${state.session}`));
  if (!draft) return;
  for (const [id, value] of draft.fields) {
    if ($(id)?.type === "checkbox") $(id).checked = value;
    else if ($(id)) $(id).value = value;
  }
  const requests = Math.max(state.requests, draft.state.requests);
  Object.assign(state, draft.state, { requests, draft });
  setByHand($("by-hand").checked);
}
