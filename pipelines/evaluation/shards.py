"""A shard of a scoring: images that belong together, their labels and their annotations; and its score.

Labels stay where they lie: a shard is some row groups of one label file, and its annotations come to it. Of the
annotation file one process holds the ids and sizes of the images; the annotations are memory-mapped, and those of a
shard go to the machine that scores it.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskrcnn_core.data.coco.annotations import Asked, read_annotations
from maskrcnn_core.data.coco.columns import AnnotationColumns
from maskrcnn_core.data.coco.entry_faults import FaultList
from maskrcnn_core.data.coco.json_text import without_garbage_collection
from maskrcnn_core.evaluation.annotations import CocoDict, asked_of
from maskrcnn_core.evaluation.coco_json_results import (
    FoundInResults,
    ResultsLayout,
    complete_results,
)
from maskrcnn_core.evaluation.shards import FoundInRows, ScoringPlan, ShardScores, merge_shards, score_shard
from pipelines.labels.files import read_label_batches

_ROWS_AT_ONCE = 250  # of labels, with all their detections

Pieces = tuple[Any, ...]
"""Text of a shard's entries, each piece the entries of a JSON list; or references to such pieces in Ray's store."""


@dataclass(frozen=True)
class LabelRows:
    """Row groups of a label file.

    Attributes:
        file: its uri.
        row_groups: neighbouring ones.
        category_ids: as of `labels.with_category_ids`.
    """

    file: str
    row_groups: tuple[int, ...]
    category_ids: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardAnnotations:
    """The annotations of some images.

    Attributes:
        columns: that they are in.
        positions: of the images.
    """

    columns: AnnotationColumns
    positions: NDArray[np.int64]

    def apart(self) -> "ShardAnnotations":
        """The same without those of other images, for another machine."""
        return ShardAnnotations(self.columns.part(self.positions), np.arange(len(self.positions)))

    def read(self, images: Mapping[int, CocoDict], asked: Asked, faults: FaultList) -> Iterator[CocoDict]:
        """Clean entries; those of images whose size was found out since are read now.

        Args:
            images: clean entries by id.
            asked, faults: as of `read_annotations`.
        """
        for position in self.positions.tolist():
            for entry in self.columns.entries(position):
                if "unread" in entry:
                    yield from read_annotations([json.loads(entry["unread"])], images, asked, faults)
                else:
                    yield entry


@dataclass(frozen=True)
class Shard:
    """Some images, with what is known of them.

    Attributes:
        images: their clean entries (`data.coco_sections`).
        rows: their label rows; None where the labels are no Parquet files, or the images have no labels.
        annotations: of the images; or a reference to them in Ray's store.
        results: text.
        left_out: ids of the images that are not evaluated.
    """

    images: tuple[CocoDict, ...]
    rows: LabelRows | None
    annotations: ShardAnnotations | Any
    results: Pieces = ()
    left_out: frozenset[int] = frozenset()


def score(plan: ScoringPlan, shard: Shard, layout: ResultsLayout | None) -> ShardScores:
    """Score one shard, whose pieces are text by now.

    Raises:
        StorageError: its label file cannot be read.
        AnnotationError: an annotation or result is wrong.
    """
    with without_garbage_collection():
        return _score(plan, shard, layout)


def _score(plan: ScoringPlan, shard: Shard, layout: ResultsLayout | None) -> ShardScores:
    images = {image["id"]: image for image in shard.images}
    objects, faults = defaultdict(list), FaultList()
    for annotation in shard.annotations.read(images, asked_of(plan.categories), faults):
        objects[annotation["image_id"]].append(annotation)
    images = {image_id: image for image_id, image in images.items() if image_id not in shard.left_out}
    parts = []
    for detections, ids in _detections(shard, layout, images):
        own = [images.pop(image_id) for image_id in ids if image_id in images]
        parts.append(score_shard(plan, own, [one for image in own for one in objects[image["id"]]], detections))
    if images or not parts:  # no label row, and so nothing found
        nothing = FoundInResults((), ResultsLayout(True, True, True), {})
        parts.append(score_shard(plan, [*images.values()], [one for i in images for one in objects[i]], nothing))
    return replace(merge_shards(parts), faults=faults.faults())


def score_all(plan: ScoringPlan, shards: Iterable[Shard], layout: ResultsLayout | None) -> ShardScores:
    """Score all shards, whose pieces are text, in this process one after the other."""
    parts = [score(plan, shard, layout) for shard in shards]
    if not parts:
        parts = [score_shard(plan, (), (), FoundInResults((), ResultsLayout(True, True, True), {}))]
    return merge_shards(parts)


def _detections(
    shard: Shard, layout: ResultsLayout | None, images: Mapping[int, CocoDict]
) -> Iterator[tuple[FoundInRows | FoundInResults, list[int]]]:
    """Detections of a few images at a time, and the ids of the images."""
    if shard.rows is not None:
        wanted = pa.array(sorted(images), pa.int64())
        for rows in _rows_of(shard.rows):
            rows = rows.filter(pa.compute.is_in(rows.column("image_id"), value_set=wanted))
            yield FoundInRows(rows), rows.column("image_id").to_pylist()
    elif layout is not None:
        numbered = [(number, entry) for number, entry in _parsed(shard.results) if entry["image_id"] in images]
        sizes = {i: (image["height"], image["width"]) for i, image in images.items() if _has_size(image)}
        yield complete_results(numbered, layout, sizes), list(images)


def _has_size(image: CocoDict) -> bool:
    return all(type(image.get(key)) is int and image[key] > 0 for key in ("height", "width"))


def _rows_of(rows: LabelRows) -> Iterator[pa.Table]:
    return read_label_batches(rows.file, rows.row_groups, _ROWS_AT_ONCE, rows.category_ids)


def _parsed(pieces: Pieces) -> Iterator[Any]:
    for piece in pieces:
        yield from json.loads(piece)
