// Tokens: a tooltip with token, id and activation; arrow keys within an example; width and signs without a reload. The
// page holds the tokens of its own width; those of a wider one are fetched where it is chosen.

const SIGNS = { " ": "·", "\n": "↵\n", "\t": "⇥\t", "\r": "␍" };
const signs = (text) => text.replace(/[ \n\t\r]/g, (character) => SIGNS[character]);

const tooltip = document.createElement("div");
tooltip.id = "tooltip";
tooltip.setAttribute("role", "status");
tooltip.hidden = true;

const original = (token) => token.dataset.t ?? token.textContent;

export function describe(token) {
  tooltip.replaceChildren();
  const text = document.createElement("b");
  text.textContent = signs(original(token)).replaceAll("\n", "") || "(continues a character)";
  const what = token.closest("[data-what]")?.dataset.what ?? "activation";
  const value = token.dataset.v ? `${what} ${token.dataset.v}` : what === "activation" ? "not active" : "";
  tooltip.append(text, ` · id ${token.dataset.i} · ${value}`);
  tooltip.hidden = false;
  const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - tooltip.offsetWidth - 8);
  const above = box.top - tooltip.offsetHeight - 6;
  tooltip.style.left = `${Math.max(8, left) + scrollX}px`;
  tooltip.style.top = `${(above > 4 ? above : box.bottom + 6) + scrollY}px`;
}

export function hideTooltip() {
  tooltip.hidden = true;
}

export function startTooltips(root = document.body) {
  document.body.append(tooltip);
  const tokenOf = (event) => event.target instanceof Element && event.target.closest("[data-i]");
  root.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (!token) return hideTooltip();
    token.removeAttribute("title"); // the plain tooltip is for pages without a script
    describe(token);
  });
  root.addEventListener("pointerleave", hideTooltip);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTooltip());
}

// Arrow keys walk the visible tokens of the example that has the focus.
function startWalking(examples) {
  for (const example of examples) {
    example.tabIndex = 0;
    let at = null;
    const visible = () => [...example.querySelectorAll("[data-i]")].filter((token) => token.getClientRects().length);
    const go = (token) => {
      at?.classList.remove("at");
      at = token;
      at.classList.add("at");
      describe(at);
    };
    example.addEventListener("focus", () => go(example.querySelector(".peak") ?? visible()[0]));
    example.addEventListener("blur", () => { at?.classList.remove("at"); hideTooltip(); });
    example.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const tokens = visible();
      const next = tokens[tokens.indexOf(at) + by];
      if (next) go(next);
      event.preventDefault();
    });
  }
}

function startReading(reading) {
  const widths = [...reading.querySelectorAll("[data-width]")];
  const breaks = reading.querySelector("[data-breaks]");
  const state = new URLSearchParams(location.search);

  const remember = () => {
    const address = new URL(location.href);
    for (const name of ["width", "breaks"]) {
      if (state.get(name)) address.searchParams.set(name, state.get(name));
      else address.searchParams.delete(name);
    }
    history.replaceState(null, "", address);
    for (const link of document.querySelectorAll("a[rel=next], a[rel=prev], [data-width], [data-breaks]")) {
      const target = new URL(link.href);
      for (const name of ["width", "breaks"]) {
        if (name in link.dataset) continue; // its own choice stays
        if (state.get(name)) target.searchParams.set(name, state.get(name));
        else target.searchParams.delete(name);
      }
      link.href = target;
    }
  };

  const reaches = ["short", "medium", "full"];
  let printed = reaches.findIndex((reach) => reading.classList.contains(`w-${reach}`));
  let wanted = null;

  const fetchExamples = async (link) => {
    const answer = await fetch(link.href);
    if (!answer.ok) throw new Error(answer.statusText);
    const found = new DOMParser().parseFromString(await answer.text(), "text/html");
    const groups = found.querySelectorAll(".reading .group");
    if (wanted !== link) return false; // another width was chosen since
    for (const old of reading.querySelectorAll(".group")) old.remove();
    reading.append(...groups);
    startWalking(reading.querySelectorAll(".examples .tokens"));
    return true;
  };

  const chooseWidth = async (link) => {
    wanted = link;
    const reach = reaches.indexOf(link.dataset.width);
    try {
      if (reach > printed) {
        if (!(await fetchExamples(link))) return;
        printed = reach;
      }
    } catch {
      location.assign(link.href);
      return;
    }
    setWidth(link);
  };

  const setWidth = (link) => {
    reading.classList.remove("w-short", "w-medium", "w-full");
    reading.classList.add(`w-${link.dataset.width}`);
    for (const other of widths) other.toggleAttribute("aria-current", other === link);
    link.setAttribute("aria-current", "true");
    state.set("width", link.dataset.width === "short" ? "" : link.dataset.width);
    remember();
  };

  const setSigns = (on) => {
    for (const token of reading.querySelectorAll("[data-i]")) {
      const text = original(token);
      const shown = on ? signs(text) : text;
      if (shown !== token.textContent) token.textContent = shown;
      if (on && shown !== text) token.dataset.t = text;
      else delete token.dataset.t;
    }
    reading.classList.toggle("signs", on);
    breaks.setAttribute("aria-pressed", String(on));
    state.set("breaks", on ? "1" : "");
    remember();
  };

  for (const link of widths) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      chooseWidth(link);
    });
  }
  breaks?.addEventListener("click", (event) => {
    event.preventDefault();
    setSigns(breaks.getAttribute("aria-pressed") !== "true");
  });
}

function startCopying(button) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.textContent;
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "copied";
    } catch {
      button.textContent = "copy the address above";
    }
    setTimeout(() => { button.textContent = text; }, 1500);
  });
}

for (const reading of document.querySelectorAll(".reading")) {
  startTooltips(reading);
  startWalking(reading.querySelectorAll(".examples .tokens"));
  if (reading.querySelector("[data-width]")) startReading(reading);
}
for (const button of document.querySelectorAll("[data-copy]")) startCopying(button);
