// The map as a Plotly chart: hovering names a feature, a click opens it, a lasso or a box selects. What is selected is in
// the address; its list is taken from the page as the server has it now. Without this the squares do the same.

import { colour } from "./charts.js";

const SIDE = 65535;
const MOST_CORNERS = 100; // of an outline in the address; longer ones are thinned
const place = document.getElementById("map");
const status = document.getElementById("map-status");
const form = document.getElementById("map-form");
let points, labels = new Map(), touched = null, asked = 0;

const state = () => new URLSearchParams(location.search);
const chosen = () => JSON.parse(document.getElementById("map-found").textContent);
const json = (address) => fetch(address).then((answer) => (answer.ok ? answer.json() : Promise.reject(answer.status)));
const escaped = (text) => text.replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);
const percent = (share) => (share ? `${(100 * share).toPrecision(2).replace(/\.?0+$/, "")}%` : "dead");

function script(address) {
  return new Promise((resolve, reject) => {
    const element = Object.assign(document.createElement("script"), { src: address, onload: resolve, onerror: reject });
    document.head.append(element);
  });
}

// What a point's colour says: its number on the scale, and the marks of the scale's legend.
function scaled(name, number) {
  const log = (value) => (value > 0 ? Math.log10(value) : null);
  switch (name) {
    case "max": return points.max_activation[number];
    case "cosine": return points.encoder_decoder_cosine[number];
    case "confidence": return labels.get(number)?.confidence ?? null;
    default: return log(points.density[number]);
  }
}

function legend(name) {
  const title = form.elements.colour.selectedOptions[0].text;
  const isNarrow = place.clientWidth < 600;
  const bar = isNarrow
    ? { title: { text: title, side: "bottom" }, orientation: "h", x: 0.5, y: 0, yanchor: "top", thickness: 8, len: 0.9, outlinewidth: 0 }
    : { title: { text: title, side: "right" }, thickness: 10, len: 0.7, outlinewidth: 0 };
  if (name !== "density") return bar;
  const decades = [-6, -5, -4, -3, -2, -1, 0];
  return { ...bar, tickvals: decades, ticktext: decades.map((e) => `${+(100 * 10 ** e).toFixed(4)}%`) };
}

function shownNumbers() {
  const all = form.elements.alive.value === "0";
  return points.x.map((_, number) => number).filter((number) => all || points.density[number] > 0);
}

function hoverText(number) {
  const label = labels.get(number)?.text;
  const name = label && label.length > 70 ? `${label.slice(0, 69)}…` : label;
  const facts = `density ${percent(points.density[number])}, max ${points.max_activation[number].toPrecision(3)}`;
  return `<b>#${number}</b>${name ? ` ${escaped(name)}` : ""}<br>${facts}`;
}

// Three layers: all features, those that a search found, and the outline of the selected part.
function traces({ found, selected }, area) {
  const kind = form.elements.colour.value;
  const numbers = shownNumbers();
  const values = numbers.map((number) => scaled(kind, number));
  const [isFound, isSelected] = [new Set(found), new Set(selected)];
  const at = (some) => ({
    x: some.map((i) => points.x[i]), y: some.map((i) => points.y[i]), customdata: some,
    selectedpoints: area ? some.flatMap((i, place) => (isSelected.has(i) ? [place] : [])) : null,
    unselected: { marker: { opacity: 0.3 } },
  });
  const common = { type: "scattergl", mode: "markers", hovertemplate: "%{text}<extra></extra>" };
  const size = Math.max(3, Math.min(7, 420 / Math.sqrt(numbers.length)));
  const lit = numbers.filter((number) => isFound.has(number));
  const grey = colour("--line-strong");
  const outline = area ? area.concat([area[0]]) : [];
  return [
    {
      ...common, ...at(numbers), text: numbers.map(hoverText),
      marker: {
        size, opacity: found.length ? 0.35 : 0.85, color: values.map((value) => value ?? NaN),
        colorscale: [[0, mixed(0.22)], [0.5, mixed(0.6)], [1, colour("--ink")]], colorbar: legend(kind), line: { width: 0 },
      },
    },
    {
      ...common, ...at(lit), text: lit.map(hoverText),
      marker: { size: size + 4, color: colour("--cool"), line: { width: 1.5, color: colour("--ink") } },
    },
    {
      type: "scattergl", mode: "lines", hoverinfo: "skip", line: { color: grey, width: 1.5, dash: "dot" },
      x: outline.map(([x]) => x), y: outline.map(([, y]) => y),
    },
  ];
}

// The cool colour over the paper: pale where there is little.
function mixed(share) {
  const [over, under] = [colour("--cool"), colour("--paper")].map((text) => text.match(/[\d.]+/g).slice(0, 3).map(Number));
  return `rgb(${over.map((value, i) => Math.round(share * value + (1 - share) * under[i])).join(",")})`;
}

function layout() {
  const axis = { visible: false, range: [-0.02 * SIDE, 1.02 * SIDE], fixedrange: false };
  const ink = colour("--muted");
  return {
    xaxis: axis, yaxis: { ...axis, scaleanchor: "x" }, margin: { l: 0, r: 0, t: 4, b: 4 }, showlegend: false,
    hovermode: "closest", dragmode: mode(), uirevision: "kept", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
    newselection: { line: { color: colour("--ink") } },
    hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily }, align: "left" },
  };
}

const mode = () => document.querySelector("#map-modes input:checked").value;

function draw() {
  const numbers = state().get("area")?.split(",").map(Number) ?? [];
  const [a, b, c, d] = numbers;
  const area = numbers.length === 4
    ? [[a, b], [c, b], [c, d], [a, d]]
    : numbers.length > 4 ? numbers.flatMap((x, i) => (i % 2 ? [] : [[x, numbers[i + 1]]])) : null;
  const size = { displayModeBar: false, responsive: true, scrollZoom: true, doubleClick: "reset" };
  return Plotly.react(place, traces(chosen(), area), layout(), size);
}

// The page of another selection: its address, its list, its points; the chart stays.
async function show(address, { focus = false } = {}) {
  const own = ++asked;
  status.textContent = "";
  try {
    const answer = await fetch(address);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (own !== asked) return; // a later selection is on its way
    const fresh = page.querySelector('[data-part="selection"]');
    if (!fresh) throw new Error(page.querySelector("main p")?.textContent);
    document.querySelector('[data-part="selection"]').replaceWith(fresh);
    const fields = page.getElementById("map-form");
    form.querySelector("[name=area]")?.remove();
    const area = fields.querySelector("[name=area]");
    if (area) form.prepend(area);
    form.elements.q.value = fields.elements.q.value;
    if (address !== location.href) history.pushState(null, "", address);
    await draw();
    status.textContent = document.getElementById("selection-title").textContent;
    if (focus) document.getElementById("selection").scrollIntoView({ block: "nearest" });
  } catch (error) {
    status.textContent = `The selection could not be shown: ${error.message || "is the server still running?"}`;
  }
}

function withParameters(changes) {
  const parameters = state();
  for (const [name, value] of Object.entries({ ...changes, limit: null })) {
    if (value === null || value === "") parameters.delete(name);
    else parameters.set(name, value);
  }
  const query = parameters.toString();
  return location.origin + location.pathname + (query ? `?${query}` : "");
}

const within = (value) => Math.max(0, Math.min(SIDE + 1, Math.round(value)));

function drawnArea({ range, lassoPoints }) {
  if (range) return [range.x[0], range.y[0], range.x[1], range.y[1]].map(within).join(",");
  if (!lassoPoints) return null;
  const every = Math.ceil(lassoPoints.x.length / MOST_CORNERS);
  const kept = lassoPoints.x.map((_, i) => i).filter((i) => i % every === 0);
  return kept.length < 3 ? null : kept.map((i) => `${within(lassoPoints.x[i])},${within(lassoPoints.y[i])}`).join(",");
}

function open(number) {
  const corpus = place.dataset.corpus;
  location.href = place.dataset.features + number + (corpus ? `?corpus=${encodeURIComponent(corpus)}` : "");
}

function listen() {
  place.on("plotly_click", ({ points: [point] }) => {
    const number = point.customdata;
    if (number === undefined) return;
    if (matchMedia("(hover: none)").matches && touched !== number) touched = number; // the first touch names it
    else open(number);
  });
  place.on("plotly_selected", (event) => {
    const area = event && drawnArea(event);
    if (!area) return;
    Plotly.relayout(place, { selections: [] }); // the outline is drawn from the address
    show(withParameters({ area }));
  });
  for (const radio of document.querySelectorAll("#map-modes input")) {
    radio.addEventListener("change", () => Plotly.relayout(place, { dragmode: mode() }));
  }
  form.elements.colour.addEventListener("change", () => {
    history.replaceState(null, "", withParameters({ colour: form.elements.colour.value === "density" ? null : form.elements.colour.value }));
    draw();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { q, within, colour: kind, alive } = Object.fromEntries(new FormData(form));
    show(withParameters({ q, within, colour: kind === "density" ? null : kind, alive: alive === "0" ? "0" : null }));
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-area]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(link.href, { focus: link.hash === "#selection" });
  });
  addEventListener("popstate", () => show(location.href));
  document.addEventListener("themechange", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

async function start() {
  const [data] = await Promise.all([json(place.dataset.map), script(place.dataset.plotly)]);
  points = data.points;
  place.replaceChildren();
  await draw();
  listen();
  place.dataset.drawn = "";
  const { items } = await json(place.dataset.labels);
  labels = new Map(items.map((item) => [item.feature_index, item]));
  await draw();
  place.dataset.named = "";
}

// Not before it is seen, and not before the rest of the page stands.
new IntersectionObserver((entries, observer) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  observer.disconnect();
  start().catch(() => { status.textContent = "The map could not be loaded; the squares lead to the features."; });
}).observe(place);
