// The theme that was chosen, set before anything is drawn. Without a choice the system's counts.
"use strict";
try {
  const theme = localStorage.getItem("mistralrs.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that refuses storage has no choice to remember.
}
