// Runs as they go on, by server-sent events: fills what the page shows in place, so that nothing moves; when a run
// ends, takes the parts that tell so from the page as the server has it now.

import { ready, redraw, shown } from "./charts.js";

const MOST_LISTENED_TO = 3; // a browser holds six connections to a host
const sources = new Map(); // by address
let points = [];
let quarter = null;

function say(text) {
  const region = document.getElementById("announce");
  if (region) region.textContent = text;
}

function fill(root, news) {
  for (const place of root.querySelectorAll("[data-live]")) {
    const name = place.dataset.live;
    if (name === "share") {
      if (news.share === null) place.removeAttribute("value");
      else place.value = 100 * news.share;
    } else if (name === "log") {
      writeLog(place, news.log);
    } else {
      const text = news.shown[name] ?? "";
      if (place.textContent !== text && (text || root !== document)) place.textContent = text;
    }
  }
}

function writeLog(list, lines) {
  const now = lines.map(({ at, text }) => `${at} ${text}`).reverse();
  if (now.join("\n") === list.dataset.written) return;
  list.dataset.written = now.join("\n");
  list.replaceChildren(...lines.toReversed().map(({ at, text }) => {
    const [item, time, words] = ["li", "time", "span"].map((name) => document.createElement(name));
    time.dateTime = at;
    time.textContent = new Date(at).toISOString().slice(11, 19);
    words.textContent = text;
    item.append(time, " ", words);
    return item;
  }));
}

// Little: each quarter of the way, so that a listener is not talked over.
function announce(news) {
  const passed = news.share === null ? null : Math.floor(4 * news.share);
  if (quarter !== null && passed !== null && passed > quarter) say(`${news.shown.what}: ${news.shown.percent}`);
  quarter = passed;
}

function drawCurves() {
  if (!shown.length) return;
  for (const [place, figure] of shown) {
    figure.data[0].x = points.map((point) => point.tokens);
    figure.data[0].y = points.map((point) => point[place.dataset.chart]);
  }
  redraw();
}

function listen(element) {
  const address = element.dataset.events;
  if (sources.has(address) || sources.size >= MOST_LISTENED_TO) return;
  const source = new EventSource(address);
  sources.set(address, source);
  const isPage = element.id === "run";
  const row = () => (isPage ? document : document.querySelector(`[data-events="${CSS.escape(address)}"]`));
  source.addEventListener("run", ({ data }) => {
    const news = JSON.parse(data);
    if (news.state !== "running" || !row()) return;
    fill(row(), news);
    if (isPage) announce(news);
  });
  source.addEventListener("points", ({ data }) => {
    if (!isPage) return;
    const news = JSON.parse(data);
    points = news.replaces ? news.points : points.concat(news.points);
    ready.then(drawCurves);
  });
  source.addEventListener("end", async ({ data }) => {
    source.close();
    sources.delete(address);
    await renew();
    say(`${JSON.parse(data)}.`);
    if (isPage) goOn();
  });
}

// Takes the parts of the page as they are now; one that holds the focus stays as it is.
async function renew() {
  const response = await fetch(location.href);
  if (!response.ok) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of document.querySelectorAll("[data-part]")) {
    const now = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
    if (now && !part.contains(document.activeElement)) part.replaceWith(document.adoptNode(now));
  }
  const log = document.querySelector("[data-live=log]");
  const freshLog = fresh.querySelector("[data-live=log]");
  if (log && freshLog) log.replaceChildren(...freshLog.children);
  document.querySelectorAll("[data-events]").forEach(listen);
}

// After the end: shows where the story goes on, and goes there if the address asks for that.
async function goOn() {
  for (let tries = 0; tries < 30; tries += 1) {
    const run = document.getElementById("run");
    const next = run?.dataset.next;
    if (next) {
      if (run.hasAttribute("data-follow")) location.assign(next.includes("/runs/") ? `${next}?follow=1` : next);
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
    if (sources.size) return; // it has been started again
    await renew();
  }
}

document.querySelectorAll("[data-events]").forEach(listen);
if (document.querySelector("[data-follow]") && !sources.size) goOn();
