// The page Learn, live: its walk-through is fetched after the page stands, and again for another SAE, text or token.

const form = document.getElementById("walk-form");
const box = document.getElementById("walk-live");
let latest = 0;

function asked(submitter) {
  const given = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (name !== "live" && value) given.set(name, value);
  if (submitter?.name) given.set(submitter.name, submitter.value);
  return given;
}

function said(sentence) {
  const line = document.createElement("p");
  line.className = "problem";
  line.setAttribute("role", "status");
  line.textContent = sentence;
  return line;
}

async function show(query) {
  const mine = ++latest;
  const focused = box.contains(document.activeElement) ? document.activeElement.value : null;
  box.setAttribute("aria-busy", "true");
  let answer;
  try {
    const response = await fetch(`${location.pathname}/live?${query}`);
    answer = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("walk-answer");
  } catch {
    answer = said("The server cannot be reached: try again when it is back.");
  }
  if (mine !== latest) return; // an answer to what was asked before
  box.replaceChildren(answer ?? said("The server failed on this; its log has the details."));
  box.removeAttribute("aria-busy");
  if (focused !== null) box.querySelector(`button[value="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

form?.addEventListener("submit", (event) => {
  event.preventDefault();
  const query = asked(event.submitter);
  history.replaceState(null, "", `?${query}`);
  show(query);
});
form?.elements.slug.addEventListener?.("change", () => form.requestSubmit());

if (form && !document.getElementById("walk-answer")) {
  const here = new URLSearchParams(location.search);
  show(here.size ? here : asked());
}
