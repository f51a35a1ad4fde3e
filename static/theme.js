// Light or dark: the system's choice, or the reader's, which is remembered. Runs before the first paint, so it is a
// plain script and not a module.
(() => {
  const root = document.documentElement;
  root.dataset.js = "";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => {
    try { return localStorage.getItem("saescope-theme"); } catch { return null; }
  };
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const chosen = root.dataset.theme ?? remembered(); // an embedded page says its own
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const show = () => { button.textContent = current() === "dark" ? "Light" : "Dark"; };
    button.hidden = false;
    button.title = "Switch between light and dark";
    show();
    dark.addEventListener("change", show);
    button.addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      try { localStorage.setItem("saescope-theme", root.dataset.theme); } catch { /* not remembered, still switched */ }
      show();
      document.dispatchEvent(new Event("themechange"));
    });
  });
})();
