// Painting instances: masks on a canvas of the picture's pixels, and what has to stay fine at every zoom on top.

import { colourOf, tinted } from "./instances.js";
import { css, inkOn } from "./colours.js";

const DIMMED = 0.3; // of the opacity, while another instance is looked at
const LETTERS = 12, PADDING = 5; // pixels of the screen
const FONT = '600 1px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
const SIDES = { left: "rgb(70 220 120)", right: "rgb(255 150 60)", middle: "rgb(90 190 255)" };

/**
 * Masks, in pixels of the picture times `scale`.
 * @param looked the instance that is looked at, or null.
 */
export function paintMasks(context, instances, { opacity, colourBy, masks }, looked, scale) {
  if (!masks) return;
  // Large ones first: what lies on them stays visible.
  for (const instance of [...instances].sort((one, other) => other.area - one.area)) {
    if (!instance.mask) continue;
    const { left, top, width, height } = instance.mask;
    context.globalAlpha = looked && looked !== instance ? opacity * DIMMED : opacity;
    const canvas = tinted(instance, colourOf(instance, colourBy));
    context.drawImage(canvas, left * scale, top * scale, width * scale, height * scale);
  }
  context.globalAlpha = 1;
}

/**
 * Outlines, boxes, keypoints and labels. The context's unit is a pixel of the picture.
 * @param pixel how many of those a pixel of the screen is.
 * @param facts of the server: `skeleton`, `keypoints` (names) and `doubtful`.
 * @param width of the picture: labels stay on it.
 */
export function paintMarks(context, instances, options, looked, pixel, facts, width) {
  const order = looked ? [...instances.filter((one) => one !== looked), looked] : instances;
  context.lineJoin = context.lineCap = "round";
  for (const instance of order) {
    const strong = instance === looked;
    context.globalAlpha = looked && !strong ? 0.45 : 1;
    paintShape(context, instance, options, strong, pixel);
    if (options.keypoints && instance.keypoints) paintKeypoints(context, instance.keypoints, pixel, facts);
  }
  context.globalAlpha = 1;
  if (looked) paintLabels(context, [looked], options, pixel, width);
  else if (options.labels) paintLabels(context, instances, options, pixel, width);
}

function paintShape(context, instance, options, strong, pixel) {
  const { x, y, width, height } = instance.box;
  const colour = css(colourOf(instance, options.colourBy));
  const stroke = (style, wide, draw) => {
    context.strokeStyle = style;
    context.lineWidth = wide * pixel;
    draw();
  };
  if (options.masks && instance.outline) {
    if (strong) stroke("rgb(255 255 255 / 90%)", 4, () => context.stroke(instance.outline));
    stroke(colour, strong ? 2 : 1.25, () => context.stroke(instance.outline));
  }
  if (options.boxes) {
    const inset = () => {
      context.beginPath();
      context.roundRect(x, y, width, height, 2 * pixel);
      context.stroke();
    };
    stroke("rgb(0 0 0 / 35%)", strong ? 4 : 3, inset);
    stroke(colour, strong ? 2.5 : 1.5, inset);
  }
}

function paintKeypoints(context, points, pixel, { skeleton, keypoints: names, doubtful }) {
  const person = points.length === names.length;
  const side = (...indices) => {
    const found = new Set(indices.map((index) => (person && names[index].match(/^(left|right)_/)?.[1]) || "middle"));
    return SIDES[found.size === 1 ? [...found][0] : "middle"];
  };
  const place = ([x, y]) => [x + 0.5, y + 0.5]; // keypoints count from the middle of the first pixel
  for (const [first, second] of person ? skeleton.map((limb) => limb.map((number) => number - 1)) : []) {
    if (points[first][2] < doubtful || points[second][2] < doubtful) continue;
    const line = new Path2D();
    line.moveTo(...place(points[first]));
    line.lineTo(...place(points[second]));
    for (const [style, width] of [["rgb(0 0 0 / 40%)", 4], [side(first, second), 2.25]]) {
      context.strokeStyle = style;
      context.lineWidth = width * pixel;
      context.stroke(line);
    }
  }
  points.forEach((point, index) => {
    if (point[2] <= 0) return;
    const hollow = point[2] < doubtful;
    context.beginPath();
    context.arc(...place(point), 3.25 * pixel, 0, 2 * Math.PI);
    context.fillStyle = hollow ? "rgb(28 28 32)" : side(index);
    context.strokeStyle = hollow ? side(index) : "rgb(28 28 32)";
    context.lineWidth = 1.25 * pixel;
    context.fill();
    context.stroke();
  });
}

/** Best first; one that would lie on another is left out. */
function paintLabels(context, instances, options, pixel, most) {
  const placed = [];
  context.font = FONT.replace("1px", `${LETTERS * pixel}px`);
  context.textBaseline = "middle";
  for (const instance of instances) {
    const text = `${instance.category} ${instance.score.toFixed(2)}`;
    const width = context.measureText(text).width + 2 * PADDING * pixel, height = (LETTERS + 7) * pixel;
    const { x, y } = instance.box;
    const left = Math.max(0, Math.min(x - 0.75 * pixel, most - width)), top = y - height < 0 ? Math.max(y, 0) : y - height;
    const free = placed.every(
      (one) => left >= one.left + one.width || left + width <= one.left || top >= one.top + height || top + height <= one.top,
    );
    if (!free) continue;
    placed.push({ left, top, width });
    const colour = colourOf(instance, options.colourBy);
    context.fillStyle = css(colour);
    context.beginPath();
    context.roundRect(left, top, width, height, 3 * pixel);
    context.fill();
    context.fillStyle = inkOn(colour);
    context.fillText(text, left + PADDING * pixel, top + height / 2 + 0.5 * pixel);
  }
}
