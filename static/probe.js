// The probe page, live: text is probed when typing pauses, answers to old texts are dropped, tokens and features are
// picked without a reload, and the address always holds what is seen.

import { hideTooltip, startTooltips } from "./tokens.js";

const STEPS = 20; // of the activation scale, as in app/examples.py
const PAUSE = 250; // milliseconds without a key until the text is probed
const form = document.getElementById("probe");
const [field, status, result, empty] = ["text", "status", "result", "empty"].map((id) => document.getElementById(id));
const [tokensBox, legend, sort] = ["tokens", "legend", "sort"].map((id) => document.getElementById(id));
const byFeature = document.getElementById("by-feature");
const lists = { text: document.getElementById("text-features"), token: document.getElementById("token-features") };
const known = document.getElementById("report");
const corpus = form.elements.corpus?.value ?? "";
const params = new URLSearchParams(location.search);
const indexIn = (name) => (params.get(name) ? Number(params.get(name)) : null);
const state = { report: known ? JSON.parse(known.textContent) : null, feature: indexIn("feature"), token: indexIn("token") };
let running = false;
let waiting = false;
let timer = 0;

// Numbers and steps as the server prints them

function number(value) {
  if (!value) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  const digits = Math.max(0, 2 - size);
  return size < -5 ? value.toExponential(1) : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
const step = (value, scale) => (value > 0 && scale > 0 ? Math.min(STEPS, Math.max(1, Math.ceil((STEPS * value) / scale - 1e-9))) : 0);
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");

function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// What is shown

const chosenFeature = () => state.report?.features.find((row) => row.feature_index === state.feature) ?? null;

function address() {
  const asked = new URLSearchParams();
  const values = { corpus, text: field.value, feature: state.feature, token: state.token, sort: sort.value === "strength" ? "" : sort.value };
  for (const [name, value] of Object.entries(values)) if (value !== null && value !== "") asked.set(name, value);
  return asked.size ? `?${asked}` : location.pathname;
}

function showTokens() {
  const { report } = state;
  const feature = chosenFeature();
  const values = feature ? feature.activations : report.tokens.map((token) => token.features[0]?.activation ?? 0);
  const largest = values.reduce((a, b) => Math.max(a, b), 0);
  const scale = feature ? Math.max(feature.corpus_max ?? 0, feature.max_activation) : largest;
  const peak = largest > 0 ? values.indexOf(largest) : -1;
  const had = tokensBox.contains(document.activeElement) ? Number(document.activeElement.value) : null;
  const pieces = [];
  report.tokens.forEach((token, position) => {
    const at = step(values[position], scale);
    const classes = ["t", at && `a${at}`, position === peak && "peak", token.is_special && "special", position === state.token && "chosen"];
    const button = made("button", { type: "submit", name: "token", value: position, class: classes.filter(Boolean).join(" "), "data-i": token.token_id });
    const lines = token.token.replaceAll("\r", "").split("\n");
    const parts = lines.map((line, i) => (i < lines.length - 1 ? `${line}↵` : line));
    button.textContent = parts[0];
    if (!parts[0].trim()) button.setAttribute("aria-label", parts[0].includes("\t") ? "tab" : parts[0] ? "space" : "no text");
    button.tabIndex = position === (state.token ?? 0) ? 0 : -1;
    if (at) button.dataset.v = number(values[position]);
    if (position === state.token) button.setAttribute("aria-current", "true");
    pieces.push(button);
    for (const part of parts.slice(1)) { // a button cannot go over a line's end: what follows stands beside it
      pieces.push(made("br"));
      if (!part) continue;
      const rest = made("span", { class: classes.slice(1).filter(Boolean).join(" "), "aria-hidden": "true" }, part);
      if (at) rest.dataset.v = "";
      pieces.push(rest);
    }
  });
  tokensBox.replaceChildren(...pieces);
  if (had !== null) buttonAt(had)?.focus({ preventScroll: true });
  byFeature.hidden = !feature;
  document.getElementById("silent").hidden = !feature || largest > 0;
  const [strongest, pinned] = form.querySelectorAll("input[name=feature]");
  strongest.checked = !feature;
  pinned.disabled = !feature;
  pinned.checked = Boolean(feature);
  pinned.value = feature ? feature.feature_index : "";
  byFeature.querySelector("span").textContent = feature ? `#${feature.feature_index} ${feature.label ?? ""}` : "";
  const words = legend.querySelector(".legend > span:last-child");
  if (words) words.firstChild.textContent = `0 to ${number(scale)}, ${feature ? "largest known activation" : "largest in this text"}; the peak is `;
}

const buttonAt = (position) => tokensBox.querySelector(`button[value="${position}"]`);

function spark(activations, scale) {
  const columns = Math.min(activations.length, 60);
  const each = 120 / columns;
  let path = "";
  for (let i = 0; i < columns; i += 1) {
    const slice = activations.slice(Math.floor((i * activations.length) / columns), Math.floor(((i + 1) * activations.length) / columns));
    const peak = Math.max(...slice);
    if (peak > 0) {
      const tall = Math.max(1.5, 20 * Math.min(1, peak / scale)).toFixed(1);
      path += `M${(i * each).toFixed(1)} 20v-${tall}h${Math.max(0.8, each - 0.5).toFixed(1)}v${tall}z`;
    }
  }
  return drawn("svg", { class: "spark", viewBox: "0 0 120 20", width: 120, height: 20, "aria-hidden": "true" }, drawn("path", { d: path }));
}

function bar(share) {
  const parts = [drawn("rect", { class: "track", width: 100, height: 8 }), drawn("rect", { width: (100 * share).toFixed(1), height: 8 })];
  return drawn("svg", { class: "bar act", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts);
}

function row(feature, value) {
  const chosen = feature.feature_index === state.feature;
  const scale = Math.max(feature.corpus_max ?? 0, value) || 1;
  const pick = made("button", { type: "submit", name: "feature", value: feature.feature_index, class: "plain pick", "aria-pressed": chosen },
    made("span", { class: "number" }, `#${feature.feature_index}`), " ", made("span", { class: "label" }, feature.label ?? ""));
  const href = form.dataset.features + feature.feature_index + (corpus ? `?corpus=${encodeURIComponent(corpus)}` : "");
  const open = feature.density === null ? [] // no index, so no page
    : [made("a", { href, title: `Density ${Number((100 * feature.density).toPrecision(2))}%` }, "open")];
  const item = made("li", { "data-feature": feature.feature_index }, pick,
    feature.activations ? spark(feature.activations, scale) : bar(value / scale),
    made("span", { class: "value" }, number(value)), ...open);
  item.classList.toggle("chosen", chosen);
  return item;
}

// Rows keep their place while the pointer or the focus is on the list.
function inPlace(list, features) {
  if (!list.matches(":hover, :focus-within")) return features;
  const order = new Map([...list.children].map((item, i) => [Number(item.dataset.feature), i]));
  return [...features].sort((a, b) => (order.get(a.feature_index) ?? 1e9) - (order.get(b.feature_index) ?? 1e9));
}

function showList(list, features, valueOf) {
  const focused = list.contains(document.activeElement) && document.activeElement.closest("li").dataset.feature;
  const scrolled = list.scrollTop;
  list.replaceChildren(...inPlace(list, features).map((feature) => row(feature, valueOf(feature))));
  list.scrollTop = scrolled;
  if (focused) list.querySelector(`[data-feature="${focused}"] button`)?.focus({ preventScroll: true });
}

function showLists() {
  const { report } = state;
  showList(lists.text, report.features, (feature) => feature.max_activation);
  document.getElementById("text-count").textContent = `${report.features.length} of ${report.n_features.toLocaleString("en")} features`;
  const token = report.tokens[state.token];
  document.getElementById("token-panel").hidden = !token;
  if (!token) return;
  document.getElementById("token-name").textContent = visible(token.token);
  document.getElementById("token-count").textContent = `${token.features.length} of ${token.n_active} features`;
  showList(lists.token, token.features, (feature) => feature.activation);
}

function show() {
  history.replaceState(null, "", address());
  result.hidden = !state.report;
  if (!state.report) return;
  empty?.setAttribute("hidden", "");
  showTokens();
  showLists();
}

function say(text, problem = false) {
  status.textContent = text;
  status.classList.toggle("problem", problem);
}

// Asking the server: one request at a time, and after it the newest text if that has changed

async function ask() {
  if (running) { waiting = true; return; }
  const text = field.value;
  if (!text.trim()) {
    Object.assign(state, { report: null, token: null });
    say("");
    empty?.removeAttribute("hidden");
    show();
    return;
  }
  running = true;
  const slow = setTimeout(() => {
    say("Loading the model; the first probe takes a few seconds…");
    result.classList.add("stale");
  }, 1000);
  try {
    const body = JSON.stringify({ text, feature: state.feature, sort: sort.value, corpus: corpus || null });
    const response = await fetch(form.dataset.api, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const answer = await response.json();
    clearTimeout(slow);
    if (field.value === text || !waiting) {
      if (response.ok) {
        state.report = answer;
        if (state.token !== null && state.token >= answer.tokens.length) state.token = null;
        const time = answer.seconds < 1 ? `${Math.round(answer.seconds * 1000)} ms` : `${answer.seconds.toFixed(1)} s`;
        say(`${answer.tokens.length.toLocaleString("en")} tokens · ${time}`);
        show();
      } else {
        say(answer.error, true);
        history.replaceState(null, "", address());
      }
    }
  } catch {
    clearTimeout(slow);
    say("The server did not answer: is it still running?", true);
  }
  result.classList.remove("stale");
  running = false;
  if (waiting) { waiting = false; ask(); }
}

function pickToken(position) {
  state.token = position === state.token ? null : position;
  show();
}

function pickFeature(feature) {
  state.feature = feature === state.feature ? null : feature;
  if (state.feature !== null && !chosenFeature()) ask(); // not among the ranked ones: the server knows its activations
  show();
}

field.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE);
});
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
});
sort.addEventListener("change", ask);
form.addEventListener("change", (event) => {
  if (event.target.type === "radio") pickFeature(event.target.value === "" ? state.feature : Number(event.target.value));
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const by = event.submitter;
  if (by?.name === "token") pickToken(Number(by.value));
  else if (by?.name === "feature") pickFeature(Number(by.value));
  else { clearTimeout(timer); ask(); }
});
tokensBox.addEventListener("keydown", (event) => {
  const at = event.target.closest("button");
  if (!at) return;
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by) {
    const next = buttonAt(Number(at.value) + by);
    if (next) {
      state.token = Number(next.value);
      show();
      buttonAt(state.token).focus();
    }
    event.preventDefault();
  } else if (event.key === "Escape" && state.token !== null) {
    pickToken(state.token);
    hideTooltip();
  }
});
for (const list of Object.values(lists)) {
  const settle = () => requestAnimationFrame(() => state.report && !list.matches(":hover, :focus-within") && showLists());
  list.addEventListener("pointerleave", settle);
  list.addEventListener("focusout", settle);
}
startTooltips(tokensBox);
if (state.report) show();
else if (field.value.trim() && !status.classList.contains("problem")) ask();
