"use strict";
// The reader's theme, before anything is painted; the system's until one was chosen.
(() => {
  try {
    const stored = localStorage.getItem("theme");
    if (stored === "light" || stored === "dark") document.documentElement.dataset.theme = stored;
  } catch { /* a browser may keep nothing */ }
})();
