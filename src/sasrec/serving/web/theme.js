// Sets the theme before the first paint, which is why it is not a module. "system" follows the device.
(() => {
  const NAME = "sasrec-theme";
  const THEMES = ["system", "light", "dark"];
  const read = () => {
    try {
      const kept = localStorage.getItem(NAME);
      return THEMES.includes(kept) ? kept : "system";
    } catch {
      return "system"; // storage may be forbidden
    }
  };
  let theme = read();
  const show = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  show();
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => (button.textContent = `Theme: ${theme}`);
    label();
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      show();
      label();
      try {
        localStorage.setItem(NAME, theme);
      } catch {
        // it lasts as long as the page then
      }
    });
  });
})();
