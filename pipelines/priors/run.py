"""Annotations in, priors out: objects are read in batches, and what is kept of them is bounded."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.data.coco.columns import AnnotationColumns
from maskrcnn_core.data.coco.conversion import Reader
from maskrcnn_core.data.priors import BoxSample, Priors, cluster_priors
from maskrcnn_core.errors import AnnotationError, StorageError
from pipelines import storage
from pipelines.annotations.columns import annotation_columns
from pipelines.priors.config import PriorsConfig, PriorsRun


@dataclass(frozen=True)
class PriorsSummary:
    """What was found.

    Attributes:
        priors: in pixels of the input (sizes), or in fractions of it (boxes).
        config: that it was found with.
        num_objects: that have a box in their image and are no crowd.
        num_left_out: objects that are crowds, or whose box has no extent in their image.
    """

    priors: Priors
    config: PriorsConfig
    num_objects: int
    num_left_out: int

    def in_cells(self) -> NDArray[np.float64]:
        """[priors, 2]: sizes in cells of the network's map, as Darknet writes them."""
        return self.priors.values / self.config.stride

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        is_sizes = self.config.kind == "sizes"
        return {
            "kind": self.config.kind,
            "unit": "pixels of the input" if is_sizes else "fractions of the input",
            "input": {"height": self.config.height, "width": self.config.width, "fit": self.config.fit},
            "priors": _rounded(self.priors.values),
            **({"in_cells": _rounded(self.in_cells()), "stride": self.config.stride} if is_sizes else {}),
            "shares": _rounded(self.priors.shares),
            "mean_iou": round(self.priors.mean_iou, 6),
            "objects": self.num_objects,
            "objects_left_out": self.num_left_out,
            "objects_clustered": self.priors.num_boxes,
        }


def find_priors(run: PriorsRun) -> PriorsSummary:
    """Cluster the boxes of annotations; the result is written as JSON where `run.output` says so.

    Raises:
        AnnotationError: the annotations are wrong, or hold fewer different boxes than priors are asked for.
        StorageError: they cannot be read, or the output not written.
    """
    if run.output and storage.is_folder(run.output):
        raise StorageError(f"output: {run.output!r} is a folder; expected the name of a JSON file")
    columns = annotation_columns(run.annotations, Reader())
    sample, left_out = BoxSample(run.priors.max_objects, run.priors.seed), 0
    for boxes, dropped in _input_boxes(columns, run.priors):
        sample.add(boxes[:, 2:] - boxes[:, :2] if run.priors.kind == "sizes" else boxes)
        left_out += dropped
    try:
        if sample.seen == 0:
            raise AnnotationError("there is no object with a box, so that there is nothing to cluster")
        priors = cluster_priors(sample.rows, run.priors.number, seed=run.priors.seed)
    except AnnotationError as error:
        raise AnnotationError(f"{run.annotations}: {error}") from None
    summary = PriorsSummary(priors, run.priors, sample.seen, left_out)
    if run.output:
        storage.write_bytes_atomically(run.output, json.dumps(summary.to_json(), indent=2).encode() + b"\n")
    return summary


def _input_boxes(columns: AnnotationColumns, config: PriorsConfig) -> Iterator[tuple[NDArray[np.float64], int]]:
    """Boxes of neighbouring objects as x1, y1, x2, y2 in the input, and how many objects were left out.

    Sizes are in pixels of the input; whole boxes in fractions of it, and as letterboxed from its upper left corner.
    """
    target = np.array([config.width, config.height], np.float64)
    for images, batch in columns.objects_by_image():
        sides = columns.sizes[images][:, ::-1].astype(np.float64)
        low = np.clip(batch.boxes[:, :2], 0, sides)
        high = np.clip(batch.boxes[:, :2] + batch.boxes[:, 2:], 0, sides)
        usable = (high > low).all(axis=1) & ~batch.crowds
        scales = target / sides
        if config.fit == "letterbox":
            scales = np.broadcast_to(scales.min(axis=1, keepdims=True), scales.shape)
        if config.kind == "boxes":
            scales = scales / target
        boxes = np.concatenate([low * scales, high * scales], axis=1)[usable]
        yield boxes, len(usable) - len(boxes)


def _rounded(values: NDArray[np.float64]) -> Any:
    return values.round(6).tolist()
