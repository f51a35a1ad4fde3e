// Puts Plotly's charts in place of the drawn ones, in the page's own colours; a point leads to its feature.

const section = document.querySelector("[data-charts]");
export const shown = []; // [place, figure] of each chart, once it is drawn

// The colours as the browser resolves them; a custom property alone would still say light-dark(…).
export function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  probe.hidden = true;
  document.body.append(probe);
  const resolved = getComputedStyle(probe).color;
  probe.remove();
  return resolved;
}

function coloured(layout) {
  const [ink, line, paper] = [colour("--muted"), colour("--line"), colour("--raised")];
  const axis = (given) => ({ ...given, gridcolor: line, linecolor: line, tickcolor: line });
  return {
    ...layout,
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: colour("--ink") } },
  };
}

function draw(place, figure) {
  const data = figure.data.map((trace) => ({
    ...trace,
    marker: { ...trace.marker, color: colour(trace.type === "bar" ? "--line-strong" : "--cool") },
    line: { ...trace.line, color: colour("--cool") },
  }));
  return Plotly.react(place, data, coloured(figure.layout), { displayModeBar: false, responsive: true });
}

async function start() {
  const response = await fetch(section.dataset.charts);
  if (!response.ok || !window.Plotly) return; // the drawn charts stay
  const figures = await response.json();
  for (const place of section.querySelectorAll("[data-chart]")) {
    const figure = figures[place.dataset.chart];
    place.replaceChildren();
    await draw(place, figure);
    shown.push([place, figure]);
    place.on("plotly_click", ({ points }) => {
      const feature = points[0].customdata;
      if (feature === undefined) return;
      const corpus = section.dataset.corpus;
      location.href = section.dataset.features + feature + (corpus ? `?corpus=${encodeURIComponent(corpus)}` : "");
    });
  }
}

export const redraw = () => shown.forEach(([place, figure]) => draw(place, figure));
document.addEventListener("themechange", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
export const ready = section ? start() : Promise.resolve();
