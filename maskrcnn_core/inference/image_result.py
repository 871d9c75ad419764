"""The detections in one image, as a notebook wants it: arrays, COCO dictionaries, masks, a picture."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.image_source import ImageSource, decoded
from maskrcnn_core.masks import decode_mask
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord

ResultKind = Literal["bbox", "segm", "keypoints"]

_SHOWN = 10  # detections in a result's text


@dataclass(frozen=True, eq=False, repr=False)
class ImageResult:
    """Detections in one image, best first, in pixels of the original image (letters as in `structures`).

    Attributes:
        record: the same as a label record, with status `ok`.
        categories: of the detector, in label order.
        has_masks: the detector has a mask head.
        num_keypoints: P of its keypoint head, or None.
        source: the image that was looked at, as it was given (a file's pixels are not kept).
        max_pixels, apply_exif: how a file is decoded (see `PredictorSettings`).
    """

    record: ImageRecord
    categories: tuple[Category, ...]
    has_masks: bool
    num_keypoints: int | None
    source: ImageSource
    max_pixels: int
    apply_exif: bool

    def __len__(self) -> int:
        return len(self.record.detections)

    def __repr__(self) -> str:
        count = len(self)
        lines = [f"{self.width} x {self.height} pixels, {count} object{'s' * (count != 1)}"]
        for detection in self.detections[:_SHOWN]:
            x, y, width, height = detection.bbox
            lines.append(
                f"  {detection.category} {detection.score:.2f} at x {x:.1f}, y {y:.1f}, {width:.1f} x {height:.1f}"
            )
        if count > _SHOWN:
            lines.append(f"  and {count - _SHOWN} more")
        return "\n".join(lines)

    @cached_property
    def detections(self) -> tuple[DetectionRecord, ...]:
        """One by one, as the label record has them."""
        return tuple(self.record.detections)

    @property
    def width(self) -> int:
        """Of the image, pixels."""
        return self.record.width or 0

    @property
    def height(self) -> int:
        """Of the image, pixels."""
        return self.record.height or 0

    @cached_property
    def boxes(self) -> NDArray[np.float32]:
        """[D, 4] x1, y1, x2, y2."""
        sides = np.array([detection.bbox for detection in self.detections], dtype=np.float32).reshape(-1, 4)
        sides[:, 2:] += sides[:, :2]
        return sides

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """[D] 0 to 1."""
        return np.array([detection.score for detection in self.detections], dtype=np.float32)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """[D] positions in `categories`."""
        label_of = {category.id: label for label, category in enumerate(self.categories)}
        return np.array([label_of[detection.category_id] for detection in self.detections], dtype=np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """D category names."""
        return tuple(detection.category for detection in self.detections)

    def masks(self) -> NDArray[np.bool_] | None:
        """[D, H, W], decoded at each call (D * H * W bytes); None without a mask head."""
        if not self.has_masks:
            return None
        masks = np.zeros((len(self), self.height, self.width), dtype=np.bool_)
        for mask, detection in zip(masks, self.detections, strict=True):
            assert detection.rle_counts is not None
            mask[:] = decode_mask(detection.rle_counts, self.height, self.width)
        return masks

    @cached_property
    def keypoints(self) -> NDArray[np.float32] | None:
        """[D, P, 3] x, y, v, all 0 for a category that has none; None without a keypoint head."""
        if self.num_keypoints is None:
            return None
        points = np.zeros((len(self), self.num_keypoints, 3), dtype=np.float32)
        for row, detection in zip(points, self.detections, strict=True):
            if detection.keypoints is not None:
                row[:] = np.reshape(detection.keypoints, (-1, 3))
        return points

    def above(self, min_score: float) -> "ImageResult":
        """Only the detections with at least this score."""
        kept = tuple(detection for detection in self.detections if detection.score >= min_score)
        return replace(self, record=replace(self.record, detections=kept))

    def to_coco(self, image_id: int, kind: ResultKind | None = None) -> list[dict[str, Any]]:
        """The detections in COCO's results format, as `jobs.evaluate` scores them.

        Args:
            image_id: of the annotation file.
            kind: which shape the results carry; None = `segm` where there is a mask head, else `keypoints`, else
                `bbox`. One at a time: pycocotools would file a mask as small or large by the area of a box beside it.

        Returns:
            Dictionaries with `image_id`, `category_id`, `score` and `bbox` (x, y, width, height), `segmentation`
            (compressed RLE) or `keypoints` (x, y, v; only of detections that have some).

        Raises:
            ValueError: the detector has no head for this kind.
        """
        kind = kind or ("segm" if self.has_masks else "bbox" if self.num_keypoints is None else "keypoints")
        if (kind == "segm" and not self.has_masks) or (kind == "keypoints" and self.num_keypoints is None):
            raise ValueError(f"kind: got {kind!r}, but the detector has no head for it; ask for 'bbox'")
        name = "segmentation" if kind == "segm" else kind
        results: list[dict[str, Any]] = []
        for detection in self.detections:
            shape: Any = list(detection.bbox)
            if kind == "segm":
                shape = {"size": [self.height, self.width], "counts": detection.rle_counts}
            elif kind == "keypoints":
                if detection.keypoints is None:
                    continue
                shape = list(detection.keypoints)
            results.append(
                {"image_id": image_id, "category_id": detection.category_id, "score": detection.score, name: shape}
            )
        return results

    def draw(
        self, image: ImageSource | None = None, *, min_score: float = 0.0, scale: float = 1.0, labels: bool = True
    ) -> Image.Image:
        """A picture with boxes, masks, keypoints and labels (see `maskrcnn_core.drawing.objects`).

        Args:
            image: of the same size, to draw on; None = the image that was looked at (a file is decoded again).
            min_score: weaker detections are left out.
            scale: enlarges the picture.
            labels: write category and score.

        Raises:
            ImageError: the image cannot be read (any more), or is of another size.
        """
        # Brings matplotlib along, for its font.
        from maskrcnn_core.drawing.objects import draw_objects, objects_from_record

        given = self.source if image is None else image
        pixels = decoded(given, max_pixels=self.max_pixels, apply_exif=self.apply_exif).permute(1, 2, 0).numpy()
        if pixels.shape[:2] != (self.height, self.width):
            raise ImageError(
                "unsupported",
                f"picture to draw on: got {pixels.shape[1]} x {pixels.shape[0]} pixels, the detections are of an image "
                f"of {self.width} x {self.height}; give the same image",
            )
        objects = objects_from_record(self.record, min_score=min_score)
        return Image.fromarray(draw_objects(pixels, objects, scale=scale, labels=labels))
