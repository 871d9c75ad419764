// What is seen, as files: COCO's JSON, and the picture with everything drawn on it.

import { paintMarks, paintMasks } from "./painting.js";

/** A COCO document of the instances that are shown; scores stand beside the annotations, as in result files. */
export function cocoDocument(fileName, { record }, shown, categories, keypointFacts) {
  const named = new Set(shown.filter((one) => one.keypoints).map((one) => one.categoryId));
  return {
    info: { description: `Detections of model ${record.model}` },
    images: [{ id: 1, file_name: fileName, width: record.width, height: record.height }],
    annotations: shown.map((one, index) => annotation(one, index + 1)),
    categories: categories.map(({ id, name }) => ({ id, name, ...(named.has(id) && keypointsOf(shown, id, keypointFacts)) })),
  };
}

function annotation({ detection, area, keypoints }, id) {
  const { category_id, score, bbox, segmentation } = detection;
  const entry = { id, image_id: 1, category_id, bbox, area, iscrowd: 0, score };
  if (segmentation) entry.segmentation = segmentation;
  if (keypoints) Object.assign(entry, { keypoints: detection.keypoints, num_keypoints: keypoints.length });
  return entry;
}

function keypointsOf(shown, id, { keypoints: names, skeleton }) {
  const count = shown.find((one) => one.categoryId === id && one.keypoints).keypoints.length;
  if (count === names.length) return { keypoints: names, skeleton };
  return { keypoints: Array.from({ length: count }, (_, index) => `keypoint_${index + 1}`), skeleton: [] };
}

/** A PNG of the picture's size. */
export async function drawnPicture(view, facts) {
  const [picture] = view.canvases;
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  paintMasks(context, view.shown, view.options, null, view.share);
  context.setTransform(view.share, 0, 0, view.share, 0, 0);
  // Lines and letters are as large on it as on a screen that it fills.
  const pixel = Math.max(0.75 / view.share, Math.max(view.width, view.height) / 1100);
  paintMarks(context, view.shown, view.options, null, pixel, facts, view.width);
  return canvas.convertToBlob({ type: "image/png" });
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
