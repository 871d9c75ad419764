"""Scoring of a shard: some images of a data set with their annotations and detections, for boxes, masks and keypoints.

Shards can be scored anywhere and merged in any order (`scoring_states`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskrcnn_core.data.coco.entry_faults import Faults
from maskrcnn_core.evaluation.annotations import CocoDict, mask_objects
from maskrcnn_core.evaluation.boundary import match_boundaries
from maskrcnn_core.evaluation.federated import match_federated
from maskrcnn_core.evaluation.keypoints import (
    MAX_DETECTIONS,
    keypoint_categories,
    keypoint_objects,
    reason_without_keypoints,
)
from maskrcnn_core.evaluation.match_counts import FoundFacts, ObjectFacts, object_facts, reason_without_masks
from maskrcnn_core.evaluation.matches import Matches, match_everything, merge_matches
from maskrcnn_core.evaluation.results import coco_results, facts_of_rows
from maskrcnn_core.evaluation.scoring_engines import engine_errors, match_images
from maskrcnn_core.evaluation.scoring_states import (
    Engine,
    IouType,
    ScoringRules,
    ScoringState,
    merge_states,
)


@dataclass(frozen=True)
class ScoringPlan:
    """What all shards of one scoring have in common.

    Attributes:
        categories: of the annotation file.
        iou_types: what to score, as far as it can be.
        max_detections: best detections of an image and category that count, at least 10; of keypoints always 20.
        engine: see `ScoringRules`.
        sigmas: of keypoints, None = COCO's.
        min_score: of the confusion matrix; None = no details.
        boundary, federated: boundary AP of masks, and LVIS' AP, with the details.
    """

    categories: tuple[CocoDict, ...]
    iou_types: tuple[IouType, ...] = ("bbox", "segm", "keypoints")
    max_detections: int = 100
    engine: Engine = "hotcoco"
    sigmas: tuple[float, ...] | None = None
    min_score: float | None = None
    boundary: bool = False
    federated: bool = False

    @cached_property
    def category_ids(self) -> tuple[int, ...]:
        """Of all categories, sorted."""
        return tuple(sorted(category["id"] for category in self.categories))

    @cached_property
    def with_keypoints(self) -> dict[int, int]:
        """Number of keypoints by id of the categories that list some."""
        return keypoint_categories(self.categories)

    def rules(self, iou_type: IouType) -> ScoringRules:
        """Of one of the scorings."""
        if iou_type == "keypoints":
            ids, limits = tuple(sorted(self.with_keypoints)), (MAX_DETECTIONS,)
            return ScoringRules(iou_type, ids, limits, self.engine, self.sigmas)
        return ScoringRules(iou_type, self.category_ids, (1, 10, self.max_detections), self.engine)


class Found(Protocol):
    """Detections on the images of a shard, wherever they come from."""

    def facts(self, category_ids: Collection[int], with_keypoints: Collection[int]) -> FoundFacts:
        """Counts of them; the arguments are the annotation file's categories, and those of them with keypoints."""
        ...

    def results(self, iou_type: IouType) -> list[CocoDict]:
        """All of them in COCO's results format, as pycocotools' `loadRes` reads it."""
        ...


@dataclass(frozen=True)
class FoundInRows:
    """Detections of label records (`inference.records`)."""

    rows: pa.Table

    def facts(self, category_ids: Collection[int], with_keypoints: Collection[int]) -> FoundFacts:
        """See `Found`."""
        return facts_of_rows(self.rows, category_ids, with_keypoints)

    def results(self, iou_type: IouType) -> list[CocoDict]:
        """See `Found`."""
        return coco_results(self.rows, iou_type)


@dataclass(frozen=True)
class ShardScores:
    """A shard, or several of them merged.

    Attributes:
        objects, detected: counts.
        states: of each iou type that could be scored.
        image_ids: [N] of the images.
        matches: of each iou type, for details; empty without.
        extras: other scorings for details: `boundary`, `federated bbox`, `federated segm`.
        faults: of the annotations.
    """

    objects: ObjectFacts
    detected: FoundFacts
    states: Mapping[IouType, ScoringState]
    image_ids: npt.NDArray[np.int64]
    matches: Mapping[IouType, Matches] = field(default_factory=dict)
    extras: Mapping[str, ScoringState] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)


def score_shard(
    plan: ScoringPlan, images: Sequence[CocoDict], annotations: Sequence[CocoDict], detections: Found
) -> ShardScores:
    """Score the images of a shard.

    Args:
        plan: of the whole scoring.
        images: image entries of the annotation file.
        annotations: all annotations of these images (clean, `annotations`).
        detections: on these images.
    """
    objects = object_facts(images, annotations)
    facts = detections.facts(plan.category_ids, plan.with_keypoints)
    # Whether any annotation has a mask is not known before all shards are: here none is asked for.
    wanted, _ = scored_types(plan, replace(objects, bare=0), facts)
    states: dict[IouType, ScoringState] = {}
    matches: dict[IouType, Matches] = {}
    extras: dict[str, ScoringState] = {}
    for iou_type in wanted:
        own = _objects(plan, iou_type, images, annotations)
        rules, results = plan.rules(iou_type), detections.results(iou_type)
        states[iou_type] = match_images(rules, images, own, results)
        if plan.min_score is None:
            continue
        with engine_errors(f"details of {iou_type}", images):
            matches[iou_type] = match_everything(rules, images, own, results, plan.min_score)
            extras |= _extras(plan, iou_type, images, own, results)
    image_ids = np.array([image["id"] for image in images], np.int64)
    return ShardScores(objects, facts, states, image_ids, matches, extras)


def _objects(
    plan: ScoringPlan, iou_type: IouType, images: Sequence[CocoDict], annotations: Sequence[CocoDict]
) -> Sequence[CocoDict]:
    """The annotations as one of the scorings reads them."""
    if iou_type == "keypoints":
        return keypoint_objects(annotations, plan.with_keypoints)
    return mask_objects(annotations, images) if iou_type == "segm" else annotations


def _extras(
    plan: ScoringPlan,
    iou_type: IouType,
    images: Sequence[CocoDict],
    annotations: Sequence[CocoDict],
    results: Sequence[CocoDict],
) -> dict[str, ScoringState]:
    extras: dict[str, ScoringState] = {}
    if iou_type == "segm" and plan.boundary:
        extras["boundary"] = match_boundaries(plan.rules(iou_type), images, annotations, results)
    if iou_type != "keypoints" and plan.federated:
        extras[f"federated {iou_type}"] = match_federated(plan.rules(iou_type), images, annotations, results)
    return extras


def merge_shards(shards: Iterable[ShardScores]) -> ShardScores:
    """Shards of different images as one, of which there is at least one; their order does not matter."""
    parts = list(shards)
    iou_types = [iou_type for iou_type in parts[0].states if all(iou_type in part.states for part in parts)]
    return ShardScores(
        sum((part.objects for part in parts), ObjectFacts()),
        sum((part.detected for part in parts), FoundFacts()),
        {iou_type: merge_states([part.states[iou_type] for part in parts]) for iou_type in iou_types},
        np.concatenate([part.image_ids for part in parts]),
        {
            iou_type: merge_matches([part.matches[iou_type] for part in parts])
            for iou_type in parts[0].matches
            if all(iou_type in part.matches for part in parts)
        },
        {
            name: merge_states([part.extras[name] for part in parts])
            for name in parts[0].extras
            if all(name in part.extras for part in parts)
        },
        sum((part.faults for part in parts), Faults()),
    )


def scored_types(
    plan: ScoringPlan, objects: ObjectFacts, detected: FoundFacts
) -> tuple[tuple[IouType, ...], dict[str, str]]:
    """What of the wanted can be scored, and why not the others; neither, where both sides know no keypoints.

    Raises:
        ConfigError: sigmas that do not fit the number of keypoints.
    """
    scored: list[IouType] = []
    skipped: dict[str, str] = {}
    for iou_type in plan.iou_types:
        possible, reason = True, None
        if iou_type == "bbox" and detected.without_box:
            reason = f"{detected.without_box} detections have no box"
        elif iou_type == "segm":
            reason = reason_without_masks(objects, detected)
        elif iou_type == "keypoints":
            possible, reason = reason_without_keypoints(plan.with_keypoints, detected, plan.sigmas)
        if reason:
            skipped[iou_type] = reason
        elif possible:
            scored.append(iou_type)
    return tuple(scored), skipped
