// One key for what a page offers most: elements say theirs in data-key. In a list, j and k move between rows.

const typing = (target) => target.closest("input, textarea, select, [contenteditable]");
const rows = [...document.querySelectorAll("[data-row]")];

function moveBetweenRows(by) {
  const at = rows.indexOf(document.activeElement);
  const next = rows[Math.min(rows.length - 1, Math.max(0, at + by))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (rows.length && (event.key === "j" || event.key === "k")) {
    moveBetweenRows(event.key === "j" ? 1 : -1);
    return;
  }
  const targets = [...document.querySelectorAll("[data-key]")].filter((element) => element.dataset.key === event.key);
  const target = targets.at(-1); // the page's own field wins over the header's
  if (!target) return;
  event.preventDefault();
  if (target.matches("input, textarea")) {
    target.focus();
    target.select();
  } else {
    target.click();
    if (target.matches("summary")) target.parentElement.querySelector("input:not([type=hidden]), select")?.focus();
  }
});
