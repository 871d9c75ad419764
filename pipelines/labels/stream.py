"""The label files of a run as a source for exporters: read a batch of rows at a time, as often as asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
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
from pipelines.labels.parts import HERE, Readers

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
        first_image: images that come before, where the files are a part of a run.
    """

    files: tuple[str, ...]
    survey: Survey
    min_score: float
    category_ids: frozenset[int] | None
    first_image: int = 0

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
    """The source of the labels at a uri; arguments and errors as of `open_label_parts`."""
    (whole,) = open_label_parts(label_files(uri), min_score, categories, HERE)
    return whole


def open_label_parts(
    files: Sequence[str], min_score: float, categories: Sequence[str], readers: Readers
) -> list[LabelFiles]:
    """The sources of label files in parts, each with the facts about all of them.

    Args:
        files: their uris, at least one.
        min_score: weaker detections are left out.
        categories: names to export; empty = all.
        readers: of the files.

    Raises:
        StorageError: they are not of this release's schema.
        ConfigError: a category that the labels don't have.
    """
    known = tuple(Category(number, name) for number, name in category_names(files, readers).items())
    unknown = [name for name in categories if name not in {category.name for category in known}]
    if unknown:
        names = ", ".join(category.name for category in known)
        raise ConfigError(f"export.categories: {unknown[0]!r} is no category of the labels; expected some of {names}")
    chosen = tuple(category for category in known if not categories or category.name in categories)
    parts = readers.parts(files)
    surveys = list(readers.in_order(_survey, [(part,) for part in parts]))
    survey = _whole_survey(surveys, chosen)
    ids = frozenset(category.id for category in chosen) if categories else None
    starts = accumulate((one.images for one in surveys), initial=0)
    return [LabelFiles(tuple(part), survey, min_score, ids, start) for part, start in zip(parts, starts, strict=False)]


@dataclass
class _PartSurvey:
    """Facts about the rows of some files; see `Survey`."""

    images: int = 0
    failed: int = 0
    root: list[str] | None = None
    models: set[str] = field(default_factory=set)
    num_keypoints: dict[int, int] = field(default_factory=dict)


def _survey(files: Sequence[str]) -> _PartSurvey:
    """One pass over the small columns, and the lengths of keypoint lists."""
    found = _PartSurvey()
    for batch in _batches(files, _SURVEY_COLUMNS, ("category_id", "keypoints")):
        ok = batch.filter(pc.equal(batch.column("status"), "ok"))
        found.images += ok.num_rows
        found.failed += batch.num_rows - ok.num_rows
        found.models.update(filter(None, batch.column("model").unique().to_pylist()))
        for uri in ok.column("uri").to_pylist():
            found.root = _shared(found.root, uri.split("/")[:-1])
        found.num_keypoints |= _keypoint_counts(ok)
    return found


def _whole_survey(parts: Sequence[_PartSurvey], categories: tuple[Category, ...]) -> Survey:
    root: list[str] | None = None
    models: set[str] = set()
    num_keypoints: dict[int, int] = {}
    for part in parts:
        root = root if part.root is None else _shared(root, part.root)
        models |= part.models
        num_keypoints |= part.num_keypoints
    wanted = {category.id for category in categories}
    return Survey(
        images=sum(part.images for part in parts),
        failed=sum(part.failed for part in parts),
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
