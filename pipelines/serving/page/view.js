// A picture that can be zoomed and moved, with instances on it. Three canvases: the picture and the masks have the
// picture's own pixels and are enlarged by the browser; lines and letters are painted for the screen.

import { instanceAt } from "./instances.js";
import { paintMarks, paintMasks } from "./painting.js";

const MOST_PIXELS = 1 << 24; // of a canvas: phones have no larger ones
const MARGIN = 20, MOST_FITTED = 4, MOST_ZOOM = 40; // pixels of the screen around a fitted picture; and scales
const STEP = 1.4, MOVE = 60, KEPT = 48; // of keys; and pixels of the picture that stay on the screen
const CLICK = 4; // pixels that a pointer may move in a click

export class PictureView {
  /**
   * @param title shown in a corner.
   * @param events `looked(instance)` for what the pointer is on, `chosen(instance)`, `step(direction)`, `moved(view)`.
   */
  constructor(title, facts, events) {
    this.facts = facts;
    this.events = events;
    this.shown = [];
    this.options = {};
    this.looked = null;
    this.place = { scale: 1, x: 0, y: 0 };
    this.fitted = true;
    this.pointers = new Map();
    this.element = document.createElement("div");
    this.element.className = "view";
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "application");
    this.element.setAttribute("aria-describedby", "keys");
    this.canvases = ["picture", "masks", "marks"].map((name) => {
      const canvas = document.createElement("canvas");
      canvas.className = name;
      canvas.setAttribute("aria-hidden", "true");
      return canvas;
    });
    this.caption = document.createElement("p");
    this.caption.className = "caption";
    this.title = title;
    this.element.append(...this.canvases, this.caption);
    this.listen();
    this.sizes = new ResizeObserver(() => this.resized());
    this.sizes.observe(this.element);
  }

  /** Show a picture; `bitmap` may be null, where the browser cannot decode what the server can. */
  setPicture(bitmap, width, height) {
    this.width = width;
    this.height = height;
    this.share = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
    const [picture, masks] = this.canvases;
    for (const canvas of [picture, masks]) {
      canvas.width = Math.max(1, Math.round(width * this.share));
      canvas.height = Math.max(1, Math.round(height * this.share));
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    if (bitmap) picture.getContext("2d").drawImage(bitmap, 0, 0, picture.width, picture.height);
    this.fit();
  }

  /** What is on the picture, and how it is drawn. */
  setInstances(shown, options) {
    this.shown = shown;
    this.options = options;
    this.repaint();
  }

  /** The instance that is brought out, or null. */
  look(instance) {
    if (instance === this.looked) return;
    this.looked = instance;
    this.repaint();
  }

  say(text, label) {
    this.caption.replaceChildren(Object.assign(document.createElement("b"), { textContent: this.title }), ` ${text}`);
    this.element.setAttribute("aria-label", label);
  }

  // ---- zoom and place

  fit(tell = true) {
    const { clientWidth, clientHeight } = this.element;
    if (!this.width || !clientWidth) return;
    const inside = [(clientWidth - 2 * MARGIN) / this.width, (clientHeight - 2 * MARGIN) / this.height];
    const scale = Math.min(...inside, MOST_FITTED);
    this.move({ scale, x: (clientWidth - this.width * scale) / 2, y: (clientHeight - this.height * scale) / 2 }, false);
    this.fitted = true;
    if (tell) this.events.moved(this);
  }

  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    const least = Math.min(0.02, this.place.scale);
    const scale = Math.min(MOST_ZOOM, Math.max(least, this.place.scale * factor));
    const grown = scale / this.place.scale;
    this.move({ scale, x: x - (x - this.place.x) * grown, y: y - (y - this.place.y) * grown });
  }

  zoomTo({ x, y, width, height }) {
    const { clientWidth, clientHeight } = this.element;
    const scale = Math.min(MOST_ZOOM, 0.6 * Math.min(clientWidth / Math.max(width, 4), clientHeight / Math.max(height, 4)));
    this.move({ scale, x: clientWidth / 2 - (x + width / 2) * scale, y: clientHeight / 2 - (y + height / 2) * scale });
  }

  /** Move as little as it takes to have some of a box on the screen. */
  bringIn({ x, y, width, height }) {
    const { clientWidth, clientHeight } = this.element, { scale } = this.place;
    const left = this.place.x + x * scale, top = this.place.y + y * scale;
    const seen = left < clientWidth && top < clientHeight && left + width * scale > 0 && top + height * scale > 0;
    if (!seen) this.move({ scale, x: clientWidth / 2 - (x + width / 2) * scale, y: clientHeight / 2 - (y + height / 2) * scale });
  }

  move({ scale, x, y }, tell = true) {
    const within = (value, size, room) => Math.min(room - KEPT, Math.max(KEPT - size * scale, value));
    this.place = {
      scale,
      x: within(x, this.width, this.element.clientWidth),
      y: within(y, this.height, this.element.clientHeight),
    };
    this.fitted = false;
    this.repaint();
    if (tell) this.events.moved(this);
  }

  /** To the same place as another view of as large a picture. */
  follow({ place, fitted }) {
    if (fitted) this.fit(false);
    else this.move(place, false);
  }

  resized() {
    if (this.width && this.fitted) this.fit();
    else if (this.width) this.move(this.place);
  }

  // ---- painting

  repaint() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      if (this.width) this.paint();
    });
  }

  paint() {
    const { scale, x, y } = this.place;
    const [picture, masks, marks] = this.canvases;
    for (const canvas of [picture, masks]) {
      canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
      canvas.style.imageRendering = scale * devicePixelRatio >= 3 ? "pixelated" : "auto";
    }
    this.paintMasks(masks);
    const dense = devicePixelRatio;
    marks.width = Math.round(this.element.clientWidth * dense);
    marks.height = Math.round(this.element.clientHeight * dense);
    const context = marks.getContext("2d");
    context.setTransform(scale * dense, 0, 0, scale * dense, x * dense, y * dense);
    paintMarks(context, this.shown, this.options, this.looked, 1 / scale, this.facts, this.width);
  }

  paintMasks(canvas) {
    // Moving and zooming change nothing in the picture's own pixels.
    const painted = [this.shown, this.options, this.looked, this.width];
    if (this.painted?.every((value, index) => value === painted[index])) return;
    this.painted = painted;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    paintMasks(context, this.shown, this.options, this.looked, this.share);
  }

  // ---- pointers and keys

  listen() {
    const { element } = this;
    element.addEventListener("pointerdown", (event) => this.pointerDown(event));
    element.addEventListener("pointermove", (event) => this.pointerMove(event));
    for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, (event) => this.pointerUp(event));
    element.addEventListener("pointerleave", () => this.events.looked(null));
    element.addEventListener("dblclick", (event) => this.zoom(2, ...this.at(event)));
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 20 : 1;
        this.zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), ...this.at(event));
      },
      { passive: false },
    );
  }

  at({ clientX, clientY }) {
    const { left, top } = this.element.getBoundingClientRect();
    return [clientX - left, clientY - top];
  }

  under(event) {
    const [x, y] = this.at(event);
    return instanceAt(this.shown, (x - this.place.x) / this.place.scale, (y - this.place.y) / this.place.scale);
  }

  pointerDown(event) {
    if (event.button) return;
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.at(event));
    this.travelled = this.pointers.size > 1 ? CLICK : 0;
  }

  pointerMove(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.events.looked(this.under(event));
      return;
    }
    const now = this.at(event), others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    this.pointers.set(event.pointerId, now);
    this.travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (others.length) {
      const [[, still]] = others;
      const apart = (point) => Math.max(1, Math.hypot(point[0] - still[0], point[1] - still[1]));
      this.zoom(apart(now) / apart(before), (now[0] + still[0]) / 2, (now[1] + still[1]) / 2);
    } else if (this.travelled > CLICK) {
      this.element.classList.add("moving");
      this.move({ scale: this.place.scale, x: this.place.x + now[0] - before[0], y: this.place.y + now[1] - before[1] });
    }
  }

  pointerUp(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    this.element.classList.remove("moving");
    if (event.type === "pointerup" && this.travelled <= CLICK && !this.pointers.size) this.events.chosen(this.under(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const shift = (x, y) => this.move({ scale: this.place.scale, x: this.place.x + x, y: this.place.y + y });
    const action = {
      ArrowLeft: () => shift(MOVE, 0),
      ArrowRight: () => shift(-MOVE, 0),
      ArrowUp: () => shift(0, MOVE),
      ArrowDown: () => shift(0, -MOVE),
      "+": () => this.zoom(STEP),
      "=": () => this.zoom(STEP),
      "-": () => this.zoom(1 / STEP),
      0: () => this.fit(),
      n: () => this.events.step(1),
      p: () => this.events.step(-1),
      Enter: () => this.looked && this.zoomTo(this.looked.box),
      Escape: () => this.events.chosen(null),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    action();
    event.preventDefault();
  }

  remove() {
    this.sizes.disconnect();
    cancelAnimationFrame(this.frame);
    this.element.remove();
  }
}
