"use strict";
// Sorting, filtering, drill-down, tabs, the large pictures and the theme. It sets text, never HTML.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;
  root.classList.add("scripts");

  // ---- theme: the system's, until the reader chooses
  const toggle = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("report-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const showTheme = () => {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
  };
  if (stored()) root.dataset.theme = stored();
  toggle.hidden = false;
  showTheme();
  system.addEventListener("change", showTheme);
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("report-theme", root.dataset.theme); } catch { /* a page from disk may have no storage */ }
    showTheme();
  });

  // ---- tables
  const sortBy = (head) => {
    const table = head.closest("table");
    const column = [...head.parentNode.children].indexOf(head);
    const isText = head.classList.contains("text");
    const was = head.getAttribute("aria-sort");
    const ascending = was === "none" ? isText : was === "descending";
    all("thead th", table).forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    const sign = ascending ? 1 : -1;
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // what is not defined comes last either way
      return sign * (isText ? a.localeCompare(b, undefined, { numeric: true }) : Number(a) - Number(b));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  all("th[aria-sort] button").forEach((button) => button.addEventListener("click", () => sortBy(button.parentNode)));
  all("[data-filter]").forEach((field) => field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    for (const row of document.getElementById(field.dataset.filter).tBodies[0].rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    }
  }));

  // ---- tabs of the galleries
  const tabs = all('[role="tab"]');
  const choose = (tab) => tabs.forEach((other) => {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  });
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -place, End: tabs.length - 1 - place }[event.key];
      if (step === undefined) return;
      const next = tabs[(place + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
      event.preventDefault();
    });
  });
  if (tabs.length) choose(tabs[0]);

  // ---- large pictures
  const box = document.getElementById("lightbox");
  let shown = [];
  let place = 0;
  const show = (index) => {
    place = (index + shown.length) % shown.length;
    const card = shown[place];
    const [title, note] = card.querySelector(".caption").children;
    box.querySelector("h2").textContent = title.textContent;
    box.querySelector(".place").textContent = `${place + 1} of ${shown.length}`;
    box.querySelector(".foot .note").textContent = note.textContent;
    box.querySelector(".source").textContent = card.dataset.source;
    box.querySelector(".pair").replaceChildren(...all(".panel", card).map((panel) => panel.cloneNode(true)));
  };
  const open = (card) => {
    shown = all(".card", card.parentNode);
    show(shown.indexOf(card));
    box.showModal();
    box.querySelector('[data-do="close"]').focus();
  };
  document.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card) open(card);
  });
  box.addEventListener("click", (event) => {
    const what = event.target.closest("[data-do]")?.dataset.do;
    if (what === "close" || event.target === box) box.close();
    if (what === "previous") show(place - 1);
    if (what === "next") show(place + 1);
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    show(place + step);
    event.preventDefault();
  });
  box.addEventListener("close", () => shown[place]?.focus());

  // ---- drill-down of a category
  const facts = new Map(JSON.parse(document.getElementById("facts").textContent).map((one) => [String(one.id), one]));
  const target = document.getElementById("category");
  const list = (element, entries) => element.append(...entries.map(([name, value]) => {
    const row = document.createElement("div");
    row.append(document.createElement("dt"), document.createElement("dd"));
    row.firstChild.textContent = name;
    row.lastChild.textContent = value;
    return row;
  }));
  const openCategory = (id, from) => {
    const known = facts.get(id);
    const part = document.getElementById("category-template").content.cloneNode(true);
    const heading = part.querySelector("h3");
    heading.textContent = known.name;
    list(part.querySelector(".facts"), known.facts);
    for (const block of all(".kind", part)) {
      const kind = known.kinds[block.dataset.kind];
      if (!kind) { block.remove(); continue; }
      list(block.querySelector(".facts"), kind.facts);
      kind.curves.forEach((path, index) => block.querySelector(`[data-curve="${index}"]`)?.setAttribute("d", path));
      if (!kind.curves.length) all("svg, .legend", block).forEach((chart) => chart.remove());
    }
    const cards = all(`.gallery .card[data-category="${CSS.escape(id)}"]`);
    part.querySelector(".cards").append(...cards.map((card) => {
      const copy = card.cloneNode(true);
      const tab = document.getElementById(`tab-${card.dataset.kind}`);
      copy.querySelector(".caption").append(Object.assign(document.createElement("em"), { textContent: tab.firstChild.textContent.trim() }));
      return copy;
    }));
    part.querySelector('[data-do="close-category"]').addEventListener("click", () => {
      target.replaceChildren();
      from.focus();
    });
    target.replaceChildren(part);
    target.scrollIntoView({ block: "nearest" });
    heading.focus({ preventScroll: true });
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-open]");
    if (button) openCategory(button.dataset.open, button);
  });
  target?.addEventListener("keydown", (event) => {
    if (event.key === "Escape") target.querySelector('[data-do="close-category"]')?.click();
  });
})();
