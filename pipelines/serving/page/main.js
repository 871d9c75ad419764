// The page: a picture comes by drop, paste, choice or example, goes to the server, and what it finds is shown.

import { Answers } from "./answers.js";
import { readRecord } from "./instances.js";
import { element } from "./panel.js";
import { problemOfFile, problemOfRecord, problemOfServer } from "./problems.js";
import { cocoDocument, drawnPicture, save } from "./saving.js";
import { ServerProblem, detect, fetchJson, models, useKey } from "./server.js";
import { PictureView } from "./view.js";

const $ = (id) => document.getElementById(id);
const answers = new Answers();
let facts = { skeleton: [], keypoints: [], doubtful: 0, examples: [] };
let served = []; // models
let file = null, bitmap = null; // the picture; the browser may be unable to show it
let views = [];
let running = null; // what aborts the request
let again = null; // what failed

// ---- a picture

async function take(taken) {
  const problem = problemOfFile(taken, served.find(({ name }) => name === $("model").value)?.limits);
  if (problem) return complain(problem);
  close();
  file = taken;
  const opened = await createImageBitmap(taken).catch(() => null);
  if (file !== taken) return opened?.close();
  bitmap = opened;
  await look();
}

/** Ask the server what is in the picture. */
async function look() {
  const own = begin();
  const names = [$("model").value, ...($("other-field").hidden ? [] : [$("other-model").value])];
  if (bitmap) showViews(names, bitmap.width, bitmap.height);
  try {
    const found = await Promise.all(names.map((name) => detect(file, name, own.signal)));
    if (running !== own) return;
    const failed = found.find(({ record }) => record.status !== "ok");
    if (failed) return complain(problemOfRecord(failed.record));
    const [{ record }] = found;
    // The record decides on the size: whether a picture is turned by its EXIF orientation is the server's choice.
    if (views[0]?.width !== record.width || views[0]?.height !== record.height) showViews(names, record.width, record.height);
    const read = found.map((one) => ({ reading: readRecord(one.record), elapsed: one.elapsed }));
    answers.present(read.map((one, index) => ({ ...one, title: names[index], view: views[index] })), file.name || "Picture");
    if (!bitmap) answers.say("This browser cannot show this kind of picture; what was found in it is shown without it.");
  } catch (error) {
    if (error.name !== "AbortError" && running === own) fail(error, look);
  } finally {
    if (running === own) end();
  }
}

function begin() {
  running?.abort();
  running = new AbortController();
  calm();
  answers.clear();
  $("busy").hidden = false;
  $("start").hidden = true;
  answers.say("Detecting");
  const since = performance.now();
  clearInterval(begin.clock);
  const tick = () => ($("clock").textContent = `${((performance.now() - since) / 1000).toFixed(1)} s`);
  tick();
  begin.clock = setInterval(tick, 100);
  return running;
}

function end() {
  running = null;
  clearInterval(begin.clock);
  $("busy").hidden = true;
}

function showViews(names, width, height) {
  for (const view of views) view.remove();
  views = names.map((name, group) => {
    const view = new PictureView(name, facts, {
      looked: (instance) => answers.bringOut(instance, group),
      chosen: (instance) => answers.choose(instance, group),
      step: (direction) => answers.step(direction, group),
      moved: () => moveTogether(view),
    });
    view.say("", "Picture");
    $("views").append(view.element);
    return view;
  });
  $("views").hidden = $("tools").hidden = false;
  $("views").classList.toggle("wide", width > height);
  for (const view of views) view.setPicture(bitmap, width, height);
}

function moveTogether(moved) {
  $("zoom").value = `${Math.round(100 * moved.place.scale)} %`;
  for (const view of views) if (view !== moved) view.follow(moved);
}

/** Back to the start. */
function close() {
  running?.abort();
  end();
  bitmap?.close();
  file = bitmap = null;
  for (const view of views) view.remove();
  views = [];
  answers.clear();
  calm();
  $("views").hidden = $("tools").hidden = true;
  $("start").hidden = false;
}

// ---- what went wrong

function fail(error, retry) {
  if (!(error instanceof ServerProblem)) throw error;
  again = retry;
  complain(problemOfServer(error));
}

function complain({ title, text, detail, again: retriable = false, key = false }) {
  $("problem-title").textContent = title;
  $("problem-text").textContent = text;
  $("problem-detail").textContent = detail ?? "";
  $("problem-detail").hidden = !detail;
  $("key-form").hidden = !key;
  $("again").hidden = !retriable;
  $("another").hidden = key;
  $("problem").hidden = false;
  if (!views.length) $("start").hidden = false;
  (key ? $("key") : retriable ? $("again") : $("another")).focus();
}

function calm() {
  $("problem").hidden = true;
}

// ---- ways in

function listen() {
  for (const id of ["open", "choose", "another"]) $(id).addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    const [chosen] = $("file").files;
    $("file").value = ""; // the same file may be chosen again
    if (chosen) take(chosen);
  });
  addEventListener("paste", (event) => {
    const [pasted] = event.clipboardData.files;
    if (pasted) take(pasted);
    else if (!event.target.closest?.("input")) complain({ title: "No picture to paste", text: "Copy a picture first, not its address or a text." });
  });
  let depth = 0; // the pointer enters and leaves every element on its way
  const dragged = (event, change) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    depth = change === null ? 0 : depth + change;
    $("drop").hidden = depth <= 0;
  };
  addEventListener("dragenter", (event) => dragged(event, 1));
  addEventListener("dragover", (event) => dragged(event, 0));
  addEventListener("dragleave", (event) => dragged(event, -1));
  addEventListener("drop", (event) => {
    dragged(event, null);
    const [dropped] = event.dataTransfer.files;
    if (dropped) take(dropped);
  });
}

function listenToButtons() {
  $("close").addEventListener("click", () => { close(); $("choose").focus(); });
  $("cancel").addEventListener("click", () => { close(); $("choose").focus(); });
  $("dismiss").addEventListener("click", () => { calm(); if (!views.length) close(); });
  $("again").addEventListener("click", () => { calm(); again?.(); });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey($("key").value);
    calm();
    again?.();
  });
  $("zoom-in").addEventListener("click", () => views[0]?.zoom(1.4));
  $("zoom-out").addEventListener("click", () => views[0]?.zoom(1 / 1.4));
  $("fit").addEventListener("click", () => views[0]?.fit());
  $("compare").addEventListener("click", () => compare($("other-field").hidden));
  $("model").addEventListener("change", () => changeModel($("model"), $("other-model")));
  $("other-model").addEventListener("change", () => changeModel($("other-model"), $("model")));
  $("save-coco").addEventListener("click", () => saveCoco());
  $("save-png").addEventListener("click", () => savePng());
}

function compare(on) {
  $("compare").setAttribute("aria-pressed", String(on));
  $("other-field").hidden = !on;
  changeModel($("model"), $("other-model"));
}

/** The two that are compared are never the same. */
function changeModel(changed, other) {
  const free = served.find(({ name }) => name !== changed.value);
  if (other.value === changed.value && free) other.value = free.name;
  if (file) look();
}

// ---- files to keep

function eachAnswer(how) {
  const stem = (file.name || "picture").replace(/\.\w{1,5}$/, "");
  return Promise.all(
    answers.answers.map((one, index) => how(one, answers.answers.length > 1 ? `${stem}.${index + 1}` : stem)),
  );
}

function saveCoco() {
  return eachAnswer(async (one, stem) => {
    const { categories } = served.find(({ name }) => name === one.title);
    const document = cocoDocument(file.name || "picture", one.reading, answers.shown(one), categories, facts);
    save(new Blob([JSON.stringify(document)], { type: "application/json" }), `${stem}.coco.json`);
  });
}

function savePng() {
  return eachAnswer(async (one, stem) => save(await drawnPicture(one.view, facts), `${stem}.detections.png`));
}

// ---- theme

function listenToTheme() {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const name = () => {
    $("theme").setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
    $("theme-icon").setAttribute("href", isDark() ? "#i-light" : "#i-dark");
  };
  name();
  system.addEventListener("change", name);
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch { /* then the choice lasts as long as the page */ }
    name();
  });
}

// ---- the start

async function start() {
  listen();
  listenToButtons();
  listenToTheme();
  await Promise.all([readFacts(), readModels()]);
}

async function readFacts() {
  try {
    facts = await fetchJson("page/facts.json");
  } catch {
    return; // no examples then, and keypoints without limbs
  }
  $("example-list").replaceChildren(
    ...facts.examples.map(({ address, title }) => {
      const picture = element("img", { src: address, alt: "", width: "160", height: "120", decoding: "async" });
      const button = element("button", { type: "button", "aria-label": `Example: ${title}` }, picture);
      button.addEventListener("click", async () => {
        const blob = await (await fetch(address)).blob();
        take(new File([blob], address.split("/").pop(), { type: blob.type }));
      });
      return element("li", {}, button);
    }),
  );
  $("examples").hidden = !facts.examples.length;
}

async function readModels() {
  try {
    served = await models();
  } catch (error) {
    return fail(error, async () => { await readModels(); if (file) look(); });
  }
  for (const id of ["model", "other-model"]) {
    $(id).replaceChildren(...served.map(({ name }) => element("option", { value: name }, name)));
    $(id).disabled = false;
  }
  if (served.length > 1) $("other-model").selectedIndex = 1;
  $("models").hidden = false;
  $("compare").hidden = served.length < 2;
}

start();
