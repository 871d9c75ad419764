"""The label files of a run as a source for exporters: read a batch of rows at a time, as often as asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.export.source import ExportImage, LabelledImage, Survey
from maskrcnn_core.records.labels import record_from_row
from maskrcnn_core.records.readable_rows import filled
from pipelines.labels.files import category_names, label_files, open_label_file

# With 100 objects an image a batch is a few megabytes, and its Python objects some ten times as much.
_ROWS_PER_BATCH = 64

_IMAGE_COLUMNS = ("image_id", "uri", "width", "height", "status")
_SURVEY_COLUMNS = (*_IMAGE_COLUMNS, "model", "detections")


@dataclass(frozen=True)
class LabelFiles:
    """`LabelSource` of label files.

    Attributes:
        files: their uris.
        survey: facts about all rows.
        min_score: weaker detections are left out.
        category_ids: only these are exported; None = all.
    """

    files: tuple[str, ...]
    survey: Survey
    min_score: float
    category_ids: frozenset[int] | None

    def images(self) -> Iterator[ExportImage]:
        """Images that were labelled, in the order of the rows."""
        for batch in _batches(self.files, _IMAGE_COLUMNS):
            for row in batch.to_pylist():
                if row["status"] == "ok":
                    yield self._image(row)

    def labelled(self) -> Iterator[LabelledImage]:
        """The same with the detections that are to be exported."""
        for batch in _batches(self.files, (*_IMAGE_COLUMNS, "error", "detections")):
            for row in batch.to_pylist():
                if row["status"] == "ok":
                    detections = record_from_row(row).detections
                    chosen = tuple(
                        detection
                        for detection in detections
                        if detection.score >= self.min_score
                        and (self.category_ids is None or detection.category_id in self.category_ids)
                    )
                    yield LabelledImage(self._image(row), chosen)

    def _image(self, row: dict[str, Any]) -> ExportImage:
        uri = row["uri"]
        name = uri[len(self.survey.root) :].lstrip("/") if self.survey.root else uri
        return ExportImage(row["image_id"], uri, name, row["width"], row["height"])


def open_labels(uri: str, min_score: float, categories: Sequence[str]) -> LabelFiles:
    """The source of the labels at a uri.

    Args:
        uri: a run's folder, its labels/ folder, or one file.
        min_score: weaker detections are left out.
        categories: names to export; empty = all.

    Raises:
        StorageError: there are no labels, or they are not of this release's schema.
        ConfigError: a category that the labels don't have.
    """
    files = tuple(label_files(uri))
    known = tuple(Category(number, name) for number, name in category_names(files).items())
    unknown = [name for name in categories if name not in {category.name for category in known}]
    if unknown:
        names = ", ".join(category.name for category in known)
        raise ConfigError(f"export.categories: {unknown[0]!r} is no category of the labels; expected some of {names}")
    chosen = tuple(category for category in known if not categories or category.name in categories)
    ids = frozenset(category.id for category in chosen)
    return LabelFiles(files, _survey(files, chosen), min_score, ids if categories else None)


def _survey(files: Sequence[str], categories: tuple[Category, ...]) -> Survey:
    """One pass over the small columns, and the lengths of keypoint lists."""
    images = failed = 0
    root: list[str] | None = None
    models: set[str] = set()
    num_keypoints: dict[int, int] = {}
    for batch in _batches(files, _SURVEY_COLUMNS, ("category_id", "keypoints")):
        ok = batch.filter(pc.equal(batch.column("status"), "ok"))
        images += ok.num_rows
        failed += batch.num_rows - ok.num_rows
        models.update(filter(None, batch.column("model").unique().to_pylist()))
        for uri in ok.column("uri").to_pylist():
            root = _shared(root, uri.split("/")[:-1])
        num_keypoints |= _keypoint_counts(ok)
    wanted = {category.id for category in categories}
    return Survey(
        images=images,
        failed=failed,
        root="/".join(root or []),
        categories=categories,
        num_keypoints={category: count for category, count in sorted(num_keypoints.items()) if category in wanted},
        model=models.pop() if len(models) == 1 else "",
    )


def _shared(root: list[str] | None, folder: list[str]) -> list[str]:
    """The parts of a path that two folders have in common from the left; None = no folder yet."""
    if root is None:
        return folder
    if folder[: len(root)] == root:
        return root
    length = next(index for index, part in enumerate(root) if folder[index : index + 1] != [part])
    return root[:length]


def _keypoint_counts(batch: pa.RecordBatch) -> dict[int, int]:
    """Keypoints of an object by category id, of those that have some."""
    structs = pc.list_flatten(batch.column("detections"))
    lengths = filled(pc.list_value_length(pc.struct_field(structs, "keypoints"))) // 3
    ids = filled(pc.struct_field(structs, "category_id"))
    pairs = np.unique(np.stack([ids, lengths], axis=1)[lengths > 0], axis=0)
    return {int(category): int(count) for category, count in pairs}


def _batches(
    files: Sequence[str], columns: Sequence[str], fields: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    for uri in files:
        # Without pre_buffer a row group's columns are read as they are needed, and given back.
        with open_label_file(uri) as file:
            yield from (batch for _, batch in file.batches(columns, _ROWS_PER_BATCH, fields=fields))
