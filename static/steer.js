// The page Steer, live: texts appear token by token, then the page's own result takes their place. The address always
// holds what is seen. Without this script the form leads to the finished page.

const form = document.getElementById("steer");
const [live, result, status] = ["live", "result", "status"].map((id) => document.getElementById(id));
let source = null;

function made(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function say(text, isProblem = false) {
  status.textContent = text;
  status.className = isProblem ? "problem" : "";
}

function begin({ prompt, titles }) {
  const columns = titles.map((title) => made("section", { class: "column" }, made("h2", {}, title), made("p", { class: "written" })));
  live.replaceChildren(made("p", { class: "after-prompt" }, `${prompt}…`), made("div", { class: "columns" }, ...columns));
  live.hidden = false;
  result.hidden = true;
  say("Writing …");
}

function grow(added) {
  const texts = live.querySelectorAll(".written");
  added.forEach((text, i) => texts[i]?.append(text));
}

function stop(text, isProblem) {
  source?.close();
  source = null;
  form.removeAttribute("aria-busy");
  if (text) say(text, isProblem);
}

// The server has it finished now: its page says what was measured.
async function finish(address) {
  stop("");
  try {
    const answer = await fetch(address, { headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    result.replaceChildren(...page.getElementById("result").childNodes);
    say(page.getElementById("status").textContent, !answer.ok);
    const fresh = page.getElementById("steer").querySelector(".pushes");
    if (!form.contains(document.activeElement)) form.querySelector(".pushes").replaceWith(fresh);
    result.hidden = false;
    live.hidden = true;
    startCopying();
  } catch {
    say("The server cannot be reached; the texts above are whole.", true);
  }
}

// The form as an address, without the lines of features that were left empty.
function asked(button) {
  const kept = new URLSearchParams();
  const lines = new Set(["feature", "mode", "strength", "turn"]);
  for (const [name, value] of new FormData(form, button)) if (value !== "" && !lines.has(name)) kept.append(name, value);
  for (const turn of form.querySelectorAll("[name=turn]")) kept.append("turn", turn.value); // an answer may be empty
  for (const line of form.querySelectorAll(".push")) {
    const number = line.querySelector("[name=feature]").value.trim();
    if (number) {
      kept.append("feature", number);
      kept.append("mode", line.querySelector("[name=mode]").value);
      kept.append("strength", line.querySelector("[name=strength]").value.trim());
    }
  }
  return kept;
}

function start(query, isNew) {
  stop("");
  const address = `${form.getAttribute("action")}?${query}`;
  if (isNew) history.pushState(null, "", address);
  form.setAttribute("aria-busy", "true");
  say("Asking the model; the first time it is loaded, which may take a while.");
  const own = new EventSource(`${form.dataset.events}?${query}`);
  source = own;
  own.addEventListener("start", (event) => begin(JSON.parse(event.data)));
  own.addEventListener("step", (event) => grow(JSON.parse(event.data)));
  own.addEventListener("end", () => finish(address));
  own.addEventListener("problem", (event) => stop(JSON.parse(event.data).error, true));
  own.onerror = () => { // an address that cannot be read is refused with a page that says why
    stop("");
    location.assign(address);
  };
}

function startCopying() {
  const button = document.querySelector("[data-copy]");
  if (!button || !navigator.clipboard) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "copied";
  });
}

form.addEventListener("submit", (event) => {
  if (!form.elements.prompt.value.trim()) return; // the server says what is missing
  event.preventDefault();
  start(asked(event.submitter), true);
});
addEventListener("popstate", () => location.reload());
startCopying();
