// Runs before the first paint (no module), so that a dark page never flashes white. Airflow keeps its choice in
// localStorage under "theme" on the same origin: the page follows it, also while both are open.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    let chosen = null;
    try {
      chosen = localStorage.getItem("theme");
    } catch {
      // Storage may be forbidden in a frame: then the system's theme.
    }
    const asked = chosen === "light" || chosen === "dark";
    document.documentElement.dataset.theme = asked ? chosen : dark.matches ? "dark" : "light";
  };
  show();
  addEventListener("storage", (event) => (event.key === "theme" || event.key === null) && show());
  dark.addEventListener("change", show);
})();
