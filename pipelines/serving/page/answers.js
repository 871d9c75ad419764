// What the models found in one picture, and what of it is to be seen: everything here acts at once, without a request.

import { isShown } from "./instances.js";
import { count, drawCategories, drawHistogram, drawInstances, drawTimings, milliseconds } from "./panel.js";

const SAME = 0.5; // IoU from which on instances of two models are taken for the same object
const QUIET = 500; // milliseconds without a change after which it is said to those who listen

const $ = (id) => document.getElementById(id);

export class Answers {
  constructor() {
    this.answers = []; // for each model { title, reading, elapsed, view }
    this.score = 0.5;
    this.hidden = new Set(); // ids of categories
    this.options = { opacity: 0.45, colourBy: "instance", masks: true, boxes: true, keypoints: true, labels: true };
    this.chosen = null; // { instance, group }
    this.listen();
  }

  /** Show new answers; those before are gone. */
  present(answers, fileName) {
    this.clear();
    this.answers = answers;
    const [{ reading, elapsed }] = answers;
    $("panel").hidden = false;
    $("about").textContent = `${fileName}, ${reading.width} × ${reading.height} px, ${answers.map((one) => milliseconds(one.elapsed)).join(" and ")}`;
    $("total").textContent = answers.map((one) => milliseconds(one.elapsed)).join(" and ");
    drawTimings($("timings"), answers);
    this.refresh();
    const broken = answers.reduce((sum, one) => sum + one.reading.broken, 0);
    const lost = broken ? ` ${count(broken, "mask")} could not be read.` : "";
    this.say(`${this.summary()} in ${milliseconds(elapsed)}.${lost}`);
  }

  clear() {
    this.answers = [];
    this.chosen = null;
    this.hidden.clear();
    $("panel").hidden = true;
  }

  shown({ reading }) {
    return reading.instances.filter((one) => isShown(one, { score: this.score, hiddenCategories: this.hidden }));
  }

  summary() {
    const texts = this.answers.map((one) => {
      const all = one.reading.instances.length;
      return `${this.shown(one).length.toLocaleString("en")} of ${count(all, "instance")}`;
    });
    return `${texts.join(" and ")} shown`;
  }

  // ---- drawing

  refresh() {
    if (!this.answers.length) return;
    const groups = this.answers.map((one) => ({ ...one, shown: this.shown(one) }));
    if (this.chosen && !groups[this.chosen.group].shown.includes(this.chosen.instance)) this.chosen = null;
    for (const { view, shown, elapsed, reading } of groups) {
      view.setInstances(shown, { ...this.options });
      const text = `${count(shown.length, "instance")}`;
      view.say(`${text} · ${milliseconds(elapsed)}`, `Picture with ${text} of ${reading.instances.length}, ${view.title}`);
    }
    this.drawPanel(groups);
    this.bringOut(null, 0);
  }

  drawPanel(groups) {
    const found = groups.flatMap(({ reading }) => reading.instances);
    const above = found.filter((one) => one.score >= this.score);
    $("count").replaceChildren(
      ...groups.map(({ shown, reading }) => {
        const line = document.createElement("span");
        const number = Object.assign(document.createElement("b"), { textContent: shown.length.toLocaleString("en") });
        line.append(number, ` of ${count(reading.instances.length, "instance")}`);
        return line;
      }),
    );
    $("score-value").value = this.score.toFixed(2);
    $("opacity-value").value = `${Math.round(100 * this.options.opacity)} %`;
    drawHistogram($("histogram"), found, this.score);
    $("category-block").hidden = !found.length;
    drawCategories($("categories"), found, above, this.hidden, (id) => this.toggle(id));
    this.drawList(groups);
    $("none").textContent = nothing(found, above, this.score);
    $("none").hidden = groups.some(({ shown }) => shown.length);
  }

  drawList(groups = this.answers.map((one) => ({ ...one, shown: this.shown(one) }))) {
    const rows = groups.map(({ title, reading: { width, height }, shown }) => ({ title, width, height, shown }));
    drawInstances($("instances"), rows, this.chosen?.instance ?? null, this.options, {
      chosen: (instance, group) => this.choose(instance, group),
      zoomed: (instance, group) => this.answers[group].view.zoomTo(instance.box),
      looked: (instance, group) => this.bringOut(instance, group),
    });
  }

  // ---- instances that are looked at

  /** Bring one out while the pointer is on it; without one, the chosen one. */
  bringOut(instance, group) {
    const looked = instance ? { instance, group } : this.chosen;
    this.answers.forEach((one, index) => {
      if (!looked) one.view.look(null);
      else one.view.look(index === looked.group ? looked.instance : counterpart(looked.instance, this.shown(one)));
    });
    for (const row of $("instances").querySelectorAll('[role="option"]')) {
      row.classList.toggle("looked", Boolean(looked) && row.id === `instance-${looked.group}-${looked.instance.index}`);
    }
  }

  choose(instance, group) {
    this.chosen = instance ? { instance, group } : null;
    this.drawList();
    this.bringOut(null, group);
    $("instances").querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
    if (!instance) return;
    this.answers[group].view.bringIn(instance.box);
    this.say(described(instance));
  }

  /** Choose the next one, or the one before, of a group or of all. */
  step(direction, group = null) {
    const all = this.answers.flatMap((one, index) =>
      group === null || group === index ? this.shown(one).map((instance) => ({ instance, group: index })) : [],
    );
    if (!all.length) return;
    const now = all.findIndex(({ instance }) => instance === this.chosen?.instance);
    const next = now < 0 ? (direction > 0 ? 0 : all.length - 1) : (now + direction + all.length) % all.length;
    this.choose(all[next].instance, all[next].group);
  }

  // ---- controls

  listen() {
    $("score").addEventListener("input", () => this.change(() => (this.score = $("score").valueAsNumber)));
    $("opacity").addEventListener("input", () => this.change(() => (this.options.opacity = $("opacity").valueAsNumber)));
    for (const radio of document.querySelectorAll('[name="colour"]')) {
      radio.addEventListener("change", () => this.change(() => (this.options.colourBy = radio.value)));
    }
    for (const box of $("layers").querySelectorAll("input")) {
      box.addEventListener("change", () => this.change(() => (this.options[box.name] = box.checked)));
    }
    $("all-categories").addEventListener("click", () => this.change(() => this.hidden.clear()));
    $("no-categories").addEventListener("click", () =>
      this.change(() => {
        for (const { reading } of this.answers) for (const one of reading.instances) this.hidden.add(one.categoryId);
      }),
    );
    $("instances").addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const action = {
      ArrowDown: () => this.step(1),
      ArrowUp: () => this.step(-1),
      Home: () => { this.chosen = null; this.step(1); },
      End: () => { this.chosen = null; this.step(-1); },
      Enter: () => this.chosen && this.answers[this.chosen.group].view.zoomTo(this.chosen.instance.box),
      Escape: () => this.choose(null, 0),
    }[event.key];
    if (!action) return;
    action();
    event.preventDefault();
  }

  toggle(id) {
    this.change(() => (this.hidden.has(id) ? this.hidden.delete(id) : this.hidden.add(id)));
  }

  change(how) {
    how();
    this.refresh();
    clearTimeout(this.quiet);
    this.quiet = setTimeout(() => this.answers.length && this.say(`${this.summary()}.`), QUIET);
  }

  say(text) {
    $("live").textContent = text;
  }
}

function nothing(found, above, score) {
  if (!found.length) return "Nothing was found in this picture.";
  if (above.length) return "All categories that were found are switched off.";
  const best = Math.max(...found.map((one) => one.score));
  return `Nothing scores ${score.toFixed(2)} or more; the best scores ${best.toFixed(2)}.`;
}

function described({ category, score, box }) {
  const [x, y, width, height] = [box.x, box.y, box.width, box.height].map(Math.round);
  return `${category}, score ${score.toFixed(2)}, at ${x}, ${y}, ${width} by ${height} pixels`;
}

/** The instance that another model found in the same place, or null. */
function counterpart({ box, categoryId }, instances) {
  let best = null, most = SAME;
  for (const one of instances) {
    const width = Math.min(box.x + box.width, one.box.x + one.box.width) - Math.max(box.x, one.box.x);
    const height = Math.min(box.y + box.height, one.box.y + one.box.height) - Math.max(box.y, one.box.y);
    const shared = Math.max(0, width) * Math.max(0, height);
    const iou = shared / (box.width * box.height + one.box.width * one.box.height - shared);
    if (one.categoryId === categoryId && iou >= most) [best, most] = [one, iou];
  }
  return best;
}
