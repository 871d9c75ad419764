// COCO's compressed run lengths: five bits a character, low ones first, signed; from the fourth run on a difference to
// the run before the last one. Runs go down the columns, background first. Followed: maskApi.c, `rleFrString`.

const FIRST = 48, MORE = 32, SIGN = 16, BITS = 5;

/** Lengths of the runs, background and object in turns. */
export function runLengths(counts) {
  const runs = [];
  let place = 0;
  while (place < counts.length) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(place++) - FIRST;
      if (!(code >= 0 && code < 2 * MORE)) throw new Error(`run lengths: no code at character ${place}`);
      if (shift < 32) value |= (code & (MORE - 1)) << shift;
      shift += BITS;
    } while (code & MORE);
    if (code & SIGN && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) throw new Error("run lengths: a negative run");
    runs.push(value);
  }
  return runs;
}

/**
 * The object's pixels in their tight rectangle.
 * @param {{size: [number, number], counts: string}} segmentation height and width of the picture, and the runs.
 * @returns {{left: number, top: number, width: number, height: number, area: number, bits: Uint8Array} | null}
 *   `bits` are rows of 0 and 1; null for a mask without a pixel.
 */
export function decodeMask({ size: [height, width], counts }) {
  const spans = objectSpans(runLengths(counts), height * width);
  let left = width, right = 0, top = height, bottom = 0, area = 0;
  for (const [begin, end] of spans) {
    const first = Math.floor(begin / height), last = Math.floor((end - 1) / height);
    left = Math.min(left, first);
    right = Math.max(right, last + 1);
    // What goes over the end of a column touches the lowest and the highest row.
    top = first === last ? Math.min(top, begin - first * height) : 0;
    bottom = first === last ? Math.max(bottom, end - first * height) : height;
    area += end - begin;
  }
  if (!area) return null;
  const columns = right - left, bits = new Uint8Array(columns * (bottom - top));
  for (const [begin, end] of spans) {
    let column = Math.floor(begin / height), row = begin - column * height;
    for (let pixel = begin; pixel < end; pixel++) {
      bits[(row - top) * columns + column - left] = 1;
      if (++row === height) { row = 0; column++; }
    }
  }
  return { left, top, width: columns, height: bottom - top, area, bits };
}

function objectSpans(runs, pixels) {
  const spans = [];
  let place = 0;
  runs.forEach((run, index) => {
    if (index % 2 && run) spans.push([place, place + run]);
    place += run;
  });
  if (place > pixels) throw new Error(`run lengths: ${place} pixels of ${pixels}`);
  return spans;
}

/** The border between the object's pixels and others, in pixels of the picture: a path to stroke. */
export function outlineOf({ left, top, width, height, bits }) {
  const path = new Path2D();
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : bits[y * width + x]);
  for (let y = 0; y <= height; y++) {
    for (let x = 0, start = -1; x <= width; x++) {
      const edge = x < width && at(x, y - 1) !== at(x, y);
      if (edge && start < 0) start = x;
      if (!edge && start >= 0) {
        path.moveTo(left + start, top + y);
        path.lineTo(left + x, top + y);
        start = -1;
      }
    }
  }
  for (let x = 0; x <= width; x++) {
    for (let y = 0, start = -1; y <= height; y++) {
      const edge = y < height && at(x - 1, y) !== at(x, y);
      if (edge && start < 0) start = y;
      if (!edge && start >= 0) {
        path.moveTo(left + x, top + start);
        path.lineTo(left + x, top + y);
        start = -1;
      }
    }
  }
  return path;
}
