// The panel beside the picture: what was found, in numbers.

import { categoryColour, css } from "./colours.js";
import { colourOf } from "./instances.js";

const BINS = 40;
const SVG = "http://www.w3.org/2000/svg";

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function swatch(colour) {
  const made = element("span", { class: "swatch" });
  made.style.backgroundColor = css(colour);
  return made;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** Bars of the scores; those below the threshold are faint. */
export function drawHistogram(svg, instances, score) {
  const bins = new Array(BINS).fill(0);
  for (const one of instances) bins[Math.min(BINS - 1, Math.floor(one.score * BINS))]++;
  const highest = Math.max(1, ...bins), width = 100 / BINS;
  svg.replaceChildren(
    ...bins.map((number, index) => {
      const bar = document.createElementNS(SVG, "rect");
      const height = number ? 2 + (22 * number) / highest : 0.6;
      const values = { x: index * width + 0.3, y: 24 - height, width: width - 0.6, height };
      for (const [name, value] of Object.entries(values)) bar.setAttribute(name, value.toFixed(2));
      bar.setAttribute("class", (index + 1) / BINS <= score ? "below" : "above");
      return bar;
    }),
  );
}

/**
 * A chip for each category that was found, most frequent first.
 * @param instances those at or above the score, of all categories.
 */
export function drawCategories(group, found, instances, hidden, toggle) {
  const focused = group.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  const counts = new Map(found.map((one) => [one.categoryId, { name: one.category, count: 0 }]));
  for (const one of instances) counts.get(one.categoryId).count++;
  const chips = [...counts].map(([id, { name, count: number }]) => {
    const shown = !hidden.has(id);
    const attributes = { type: "button", class: "chip", "aria-pressed": String(shown), "data-id": id };
    const chip = element("button", attributes, swatch(categoryColour(id)), name, " ", element("small", {}, String(number)));
    chip.addEventListener("click", () => toggle(id));
    return chip;
  });
  group.replaceChildren(...chips);
  if (focused !== null) group.querySelector(`[data-id="${focused}"]`)?.focus();
}

/**
 * The instances that are shown, as options of a list; with several answers a group for each.
 * @param groups `{ title, width, height, shown }` of each answer.
 */
export function drawInstances(list, groups, chosen, options, events) {
  const rows = groups.map(({ title, width, height, shown }, group) => {
    const items = shown.map((instance) => row(instance, group, instance === chosen, options, width * height, events));
    if (groups.length === 1) return items;
    const name = element("span", { class: "group", "aria-hidden": "true" }, title);
    return [element("div", { role: "group", "aria-label": title }, name, ...items)];
  });
  list.replaceChildren(...rows.flat());
  const current = list.querySelector('[aria-selected="true"]');
  if (current) list.setAttribute("aria-activedescendant", current.id);
  else list.removeAttribute("aria-activedescendant");
  list.hidden = groups.every(({ shown }) => !shown.length);
}

function row(instance, group, isChosen, { colourBy }, pixels, events) {
  const meter = element("span", { class: "meter", "aria-hidden": "true" }, element("span"));
  meter.firstChild.style.width = `${100 * instance.score}%`;
  const item = element(
    "div",
    { role: "option", id: `instance-${group}-${instance.index}`, "aria-selected": String(isChosen) },
    swatch(colourOf(instance, colourBy)),
    element("span", { class: "name" }, instance.category),
    meter,
    element("span", { class: "number" }, instance.score.toFixed(3)),
  );
  if (isChosen) item.append(details(instance, pixels));
  item.addEventListener("click", () => events.chosen(instance, group));
  item.addEventListener("dblclick", () => events.zoomed(instance, group));
  item.addEventListener("pointerenter", () => events.looked(instance, group));
  item.addEventListener("pointerleave", () => events.looked(null, group));
  return item;
}

function details({ box, mask, area, keypoints }, pixels) {
  const share = (100 * area) / pixels;
  const facts = [
    ["corner", `x ${box.x.toFixed(1)}, y ${box.y.toFixed(1)}`],
    ["size", `${box.width.toFixed(1)} × ${box.height.toFixed(1)} px`],
    [mask ? "mask" : "box", `${Math.round(area).toLocaleString("en")} px, ${share < 0.1 ? share.toFixed(2) : share.toFixed(1)} %`],
  ];
  if (keypoints) {
    const mean = keypoints.reduce((sum, [, , v]) => sum + v, 0) / keypoints.length;
    facts.push(["keypoints", `${keypoints.length}, mean ${mean.toFixed(2)}`]);
  }
  const entries = facts.flatMap(([name, value]) => [element("span", { class: "what" }, name), element("span", {}, value)]);
  return element("span", { class: "details" }, ...entries);
}

const STEPS = [["decode_ms", "decode"], ["queue_ms", "wait"], ["model_ms", "model"]];

/** Where the time went, as a bar and in words, for each answer. */
export function drawTimings(place, answers) {
  place.replaceChildren(
    ...answers.map(({ title, elapsed, reading }) => {
      const timing = reading.record.timing ?? {};
      const parts = STEPS.filter(([key]) => timing[key] !== undefined).map(([key, name]) => [name, timing[key]]);
      const known = parts.reduce((sum, [, value]) => sum + value, 0);
      parts.push(["transfer", Math.max(0, elapsed - known)]);
      const bar = element("div", { class: "bar", "aria-hidden": "true" });
      const words = element("p", { class: "legend" });
      if (answers.length > 1) words.append(element("b", {}, title), " ");
      for (const [name, value] of parts) {
        const piece = element("span", { class: `part ${name}` });
        piece.style.flexGrow = value;
        bar.append(piece);
        words.append(element("span", { class: `entry ${name}` }, `${name} ${milliseconds(value)}`), " ");
      }
      return element("div", {}, bar, words);
    }),
  );
}

export function milliseconds(value) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return value < 9.95 ? `${value.toFixed(1)} ms` : `${Math.round(value).toLocaleString("en")} ms`;
}
