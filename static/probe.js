// The probe page, live: what changes with the text is printed by the server while one types, one request at a time;
// answers to what was asked before are dropped, and the address always holds what is seen.

import { hideTooltip, startTooltips } from "./tokens.js";

const PAUSE = 80; // milliseconds without a key until the text is probed
const SUPERSEDED = 1000; // milliseconds after which a request is given up for a newer one
const LONGEST_ADDRESS = 6000; // characters; servers and chats cut longer ones
const form = document.getElementById("probe");
const [field, result, progress, long] = ["text", "result", "progress", "long"].map((id) => document.getElementById(id));
const session = crypto.getRandomValues(new Uint32Array(2)).join("-"); // of this page: the server keeps what it has run
let running = null; // {controller, since} of the request under way
let wanted = null; // {changes} to ask for after it
let timer = 0;
let again = 0; // timer: the server was full and is asked once more
let shownOrder = rankedBy(state()); // how the lists are ranked that are seen

// The form's state, with changes: a value of null is left out
function state(changes = {}) {
  const given = { text: field.value, pin: [], beside: [], feature: null };
  for (const [name, value] of new FormData(form)) {
    if (name === "pin" || name === "beside") given[name].push(value);
    else given[name] = value;
  }
  Object.assign(given, changes);
  given.special = Boolean(given.special);
  return given;
}

function rankedBy(asked) {
  return `${asked.sort} ${asked.max_density}`;
}

function address(asked) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(asked)) {
    const shown = Array.isArray(value) ? value.join(",") : value === true ? "1" : value;
    if (shown && !(name === "sort" && shown === "strength")) params.set(name, shown);
  }
  const whole = `${form.getAttribute("action")}?${params}`;
  long.hidden = whole.length <= LONGEST_ADDRESS;
  if (!long.hidden) params.delete("text");
  return params.size ? `${form.getAttribute("action")}?${params}` : form.getAttribute("action");
}

async function ask(changes = {}) {
  if (running) {
    wanted = { changes: { ...wanted?.changes, ...changes } };
    if (performance.now() - running.since > SUPERSEDED) running.controller.abort();
    return;
  }
  clearTimeout(again);
  const asked = state(changes);
  history.replaceState(null, "", address(asked));
  running = { controller: new AbortController(), since: performance.now() };
  const slow = setTimeout(follow, SUPERSEDED);
  try {
    const response = await fetch(form.dataset.liveUrl, {
      method: "POST", headers: { "Content-Type": "application/json" }, signal: running.controller.signal,
      body: JSON.stringify({ ...asked, session }),
    });
    const answer = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("answer");
    const order = rankedBy(asked);
    if (answer) show(answer, Boolean(asked.text.trim()), order === shownOrder);
    else say("The server failed on this; its log has the details.");
    if (response.status === 503) again = setTimeout(ask, 1000 * (response.headers.get("Retry-After") ?? 5), changes);
    shownOrder = order;
  } catch (error) {
    if (error.name !== "AbortError") say("The server did not answer: is it still running?");
  }
  clearTimeout(slow);
  running = null;
  progress.textContent = "";
  result.classList.remove("stale");
  if (wanted) {
    const next = wanted.changes;
    wanted = null;
    ask(next);
  }
}

function say(sentence) {
  const status = document.getElementById("status");
  status.textContent = sentence;
  status.classList.add("problem");
}

// What the worker is at, while an answer takes long
async function follow() {
  if (!running) return;
  result.classList.add("stale");
  try {
    const worker = await (await fetch(form.dataset.workerUrl)).json();
    if (running) progress.textContent = worker.loading ?? (worker.pending > 1 ? `${worker.pending} texts wait for the model…` : "The model is at work…");
  } catch { /* the request itself says what is wrong */ }
  setTimeout(follow, 500);
}

// Rows keep their place while the pointer or the focus is on their list, and come into order when it leaves.
const isHeld = (list) => list.matches(":hover, :focus-within");

function arrange(list, placeOf) {
  list.replaceChildren(...[...list.children].sort((a, b) => placeOf(a) - placeOf(b)));
}

function inPlace(list, old) {
  [...list.children].forEach((row, rank) => { row.dataset.rank = rank; });
  if (!old || !isHeld(old)) return;
  const order = new Map([...old.children].map((row, i) => [row.dataset.feature, i]));
  arrange(list, (row) => order.get(row.dataset.feature) ?? 1e6 + Number(row.dataset.rank));
}

function release(event) {
  const list = event.target.closest?.("ol.found");
  requestAnimationFrame(() => {
    if (list?.isConnected && !isHeld(list) && list.querySelector("[data-rank]")) arrange(list, (row) => Number(row.dataset.rank));
  });
}

function show(answer, hasText, keepsPlaces) {
  const focused = result.contains(document.activeElement) ? document.activeElement : null;
  const place = focused?.closest("li, .tokens");
  const scrolled = new Map();
  for (const list of answer.querySelectorAll("ol.found")) {
    const old = document.getElementById(list.id);
    inPlace(list, keepsPlaces ? old : null);
    scrolled.set(list.id, old?.scrollTop ?? 0);
  }
  const problem = answer.querySelector("#status.problem");
  if (problem && document.getElementById("tokens")) { // what was seen stays, with what went wrong above it
    document.getElementById("status").replaceWith(problem);
    return;
  }
  result.replaceChildren(document.adoptNode(answer));
  for (const [id, top] of scrolled) document.getElementById(id).scrollTop = top;
  document.getElementById("empty").hidden = hasText || Boolean(problem);
  settle();
  if (!focused?.name) return;
  const box = place?.dataset.feature && document.querySelector(`[data-feature="${place.dataset.feature}"]`);
  const same = `:not([type=hidden])[name="${focused.name}"][value="${CSS.escape(focused.value)}"]`;
  ((box || result).querySelector(same) ?? result.querySelector(same))?.focus({ preventScroll: true });
}

const buttons = () => [...result.querySelectorAll("#tokens button")];

// One token is reached by Tab, the others from there with the arrows.
function settle() {
  const all = buttons();
  const chosen = all.find((button) => button.hasAttribute("aria-current")) ?? all[0];
  for (const button of all) button.tabIndex = button === chosen ? 0 : -1;
}

function pickToken(button) {
  const lets_go = button.hasAttribute("aria-current");
  for (const other of buttons()) {
    const chosen = other === button && !lets_go;
    other.classList.toggle("chosen", chosen);
    other.toggleAttribute("aria-current", chosen);
  }
  ask({ token: lets_go ? null : button.value });
}

field.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE, { token: null });
});
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
});
form.addEventListener("change", (event) => {
  if (event.target !== field) ask();
});
form.addEventListener("submit", (event) => {
  const by = event.submitter;
  if (by?.formAction.endsWith("/share")) return; // a page of its own
  event.preventDefault();
  clearTimeout(timer);
  if (by?.name === "token") pickToken(by);
  else if (by?.name === "feature") ask({ feature: by.getAttribute("aria-pressed") === "true" ? null : by.value });
  else if (by?.name === "pin") ask({ pin: [...new Set([...state().pin, by.value])] });
  else ask();
});
result.addEventListener("keydown", (event) => {
  const at = event.target.closest("#tokens button");
  if (!at) return;
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by) {
    const all = buttons();
    const next = all[all.indexOf(at) + by];
    if (next) {
      next.focus();
      pickToken(next);
    }
    event.preventDefault();
  } else if (event.key === "Escape" && at.hasAttribute("aria-current")) {
    pickToken(at);
    hideTooltip();
  }
});
result.addEventListener("pointerout", release);
result.addEventListener("focusout", release);
startTooltips(result);
settle();
if (field.value.trim() && !document.getElementById("tokens") && !document.querySelector("#status.problem")) ask();
