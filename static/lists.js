// A list's items are moved without a reload, by their buttons or with Alt and an arrow key; the order is sent at once.
// Without this script the same buttons are forms.

const list = document.querySelector("[data-order]");
const said = document.getElementById("moved");
let sending = Promise.resolve();

const say = (text, problem = false) => {
  said.textContent = text;
  said.classList.toggle("problem", problem);
  said.classList.toggle("hidden", !problem); // a success is only read aloud: it can be seen
};

function number() {
  const items = [...list.children];
  items.forEach((item, i) => {
    item.querySelector(".place").textContent = i + 1;
    item.querySelector("[data-move='-1']").disabled = i === 0;
    item.querySelector("[data-move='1']").disabled = i === items.length - 1;
  });
}

async function send(item) {
  const body = JSON.stringify({ items: [...list.children].map((one) => Number(one.dataset.item)), version: Number(list.dataset.version) });
  let answer;
  try {
    const response = await fetch(list.dataset.order, { method: "PUT", headers: { "Content-Type": "application/json" }, body });
    answer = await response.json();
    if (!response.ok) return say(answer.error, true);
  } catch {
    return say("The server did not answer, so the order was not kept: is it still running?", true);
  }
  list.dataset.version = answer.version;
  for (const field of document.querySelectorAll("input[data-version]")) field.value = answer.version;
  const name = item.querySelector(".number").textContent;
  say(`${name} is now ${[...list.children].indexOf(item) + 1} of ${list.children.length}`);
}

function move(item, by) {
  const beside = by < 0 ? item.previousElementSibling : item.nextElementSibling;
  if (!beside) return;
  const had = document.activeElement;
  if (by < 0) beside.before(item);
  else beside.after(item);
  number();
  const focus = had.disabled ? item.querySelector("[data-move]:not(:disabled)") : had; // at an end its button is off
  focus?.focus({ preventScroll: true });
  item.scrollIntoView({ block: "nearest" });
  sending = sending.then(() => send(item)); // one after the other, each with the version that the last one made
}

list?.addEventListener("click", (event) => {
  const button = event.target.closest("[data-move]");
  if (!button) return;
  event.preventDefault();
  move(button.closest("[data-item]"), Number(button.dataset.move));
});

list?.addEventListener("keydown", (event) => {
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  const item = event.target.closest("[data-item]");
  if (!by || !item || !event.altKey || event.target.closest("textarea, input")) return;
  event.preventDefault();
  move(item, by);
});
