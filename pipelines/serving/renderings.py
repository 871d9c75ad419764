"""A record in the form that was asked for: the row that labelling writes, COCO's results, or a picture."""

import io
import json
from dataclasses import dataclass, replace
from typing import Any

from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.export.coco import coco_result
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table

_SCHEMA = record_schema(())


@dataclass(frozen=True)
class Wanted:
    """Which detections of a record are asked for.

    Attributes:
        score_threshold: weaker ones are left out.
        max_detections: best so many; None = all.
        category_ids: only these; None = all.
    """

    score_threshold: float = 0.0
    max_detections: int | None = None
    category_ids: frozenset[int] | None = None

    def of(self, record: ImageRecord) -> ImageRecord:
        """The record with these alone, in its order."""
        if self == Wanted():
            return record
        kept = [
            one
            for one in record.detections
            if one.score >= self.score_threshold and (self.category_ids is None or one.category_id in self.category_ids)
        ]
        return replace(record, detections=tuple(kept[: self.max_detections]))


def label_row(record: ImageRecord, model: str, *, image_id: int = 0, uri: str = "") -> dict[str, Any]:
    """The row that labelling would write of it, field by field."""
    row: dict[str, Any] = records_to_table([image_id], [uri], [record], model, _SCHEMA).to_pylist()[0]
    return row


def coco_results(record: ImageRecord, *, image_id: int = 0) -> list[dict[str, Any]]:
    """COCO's results: box, mask and keypoints of a detection in one entry."""
    return [coco_result(one, image_id, (record.height, record.width)) for one in record.detections]


def drawn(content: bytes, record: ImageRecord, *, max_pixels: int, apply_exif: bool) -> bytes:
    """A PNG file of the image with the detections on it.

    Raises:
        ImageError: the image cannot be decoded.
    """
    # Brings matplotlib along, for its font.
    from PIL import Image

    from maskrcnn_core.drawing.objects import draw_objects, objects_from_record

    pixels = decode_image(content, max_pixels=max_pixels, apply_exif=apply_exif).permute(1, 2, 0).numpy()
    picture = io.BytesIO()
    Image.fromarray(draw_objects(pixels, objects_from_record(record))).save(picture, "PNG", compress_level=1)
    return picture.getvalue()


def to_json(content: object) -> bytes:
    """Compact, letters of all scripts as they are; names of files may hold halves of characters."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
