// A label record as the page needs it: instances with their pixels, and what is to be seen of them.

import { categoryColour, instanceColour } from "./colours.js";
import { decodeMask, outlineOf } from "./rle.js";

/** Instances of a record, best first. Malformed masks are left out and counted in `broken`. */
export function readRecord(record) {
  let broken = 0;
  const instances = record.detections.map((detection, index) => {
    let mask = null;
    if (detection.segmentation) {
      try {
        mask = decodeMask(detection.segmentation);
      } catch {
        broken++;
      }
    }
    const [x, y, width, height] = detection.bbox;
    return {
      index,
      detection,
      categoryId: detection.category_id,
      category: detection.category,
      score: detection.score,
      box: { x, y, width, height },
      mask,
      outline: mask && outlineOf(mask),
      area: mask ? mask.area : width * height,
      keypoints: triples(detection.keypoints),
    };
  });
  return { record, instances, broken, width: record.width, height: record.height };
}

function triples(flat) {
  if (!flat?.length) return null;
  return Array.from({ length: flat.length / 3 }, (_, index) => flat.slice(3 * index, 3 * index + 3));
}

export function isShown(instance, { score, hiddenCategories }) {
  return instance.score >= score && !hiddenCategories.has(instance.categoryId);
}

export function colourOf(instance, colourBy) {
  return colourBy === "category" ? categoryColour(instance.categoryId) : instanceColour(instance.index);
}

/** The mask's pixels in a colour, as a canvas of its tight rectangle; kept until another colour is asked for. */
export function tinted(instance, colour) {
  const name = colour.join();
  if (instance.tint?.name !== name) {
    const { width, height, bits } = instance.mask;
    const canvas = new OffscreenCanvas(width, height);
    const pixels = new ImageData(width, height);
    const words = new Uint32Array(pixels.data.buffer);
    const [word] = new Uint32Array(new Uint8ClampedArray([...colour, 255]).buffer);
    for (let index = 0; index < bits.length; index++) if (bits[index]) words[index] = word;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    instance.tint = { name, canvas };
  }
  return instance.tint.canvas;
}

/** The smallest of the instances at a point of the picture, pixels; its mask decides where it has one. */
export function instanceAt(instances, x, y) {
  const covering = instances.filter(({ mask, box }) => {
    if (!mask) return x >= box.x && y >= box.y && x < box.x + box.width && y < box.y + box.height;
    const column = Math.floor(x) - mask.left, row = Math.floor(y) - mask.top;
    return column >= 0 && row >= 0 && column < mask.width && row < mask.height && mask.bits[row * mask.width + column];
  });
  return covering.reduce((best, one) => (best && best.area <= one.area ? best : one), null);
}
