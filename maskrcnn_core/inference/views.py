"""Featurised image pyramid at test time: the image in several sizes, mirrored too, and one result of all of them.

Boxes of all views are brought to the original frame and merged by non-maximum suppression; then every view draws masks
and keypoint heatmaps on the merged boxes, and their means are taken (Detectron's and detectron2's test-time
augmentation; Detectron merges keypoints so, detectron2 only boxes and masks). The trunk runs once a view.

Letters as in `structures`, and V views.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from maskrcnn_core.boxes import keep_best, suppress
from maskrcnn_core.inference.frames import boxes_in_input, clipped_boxes_in_original, keypoints_in_original
from maskrcnn_core.model.averaging import average_pairs, summed_score
from maskrcnn_core.structures import Detections, ImageBatch, Proposals, real_or_unit, valid_slots


class Features(Protocol):
    """Whatever the steps after the first need of the images: the feature maps and sizes.

    Attributes:
        fixed_size: no shape may depend on data.
    """

    @property
    def fixed_size(self) -> bool:
        """As in `ImageFeatures`."""
        ...


State = TypeVar("State", bound=Features)


class DetectsInSteps(Protocol[State]):
    """The part of `maskrcnn_core.model.detector.Detector` that this module uses."""

    def features(self, images: ImageBatch) -> State:
        """Per-image computation."""
        ...

    def boxes(self, features: State, proposals: Proposals | None = None) -> Detections:
        """Boxes, scores and labels in the input frame, of the RPN's or the given proposals (input frame)."""
        ...

    def masks(self, features: State, detections: Detections) -> Tensor | None:
        """[N, D, S, S] probabilities on the boxes of the detections (input frame), zero in padded slots; None without a
        mask head."""
        ...

    def heatmaps(self, features: State, detections: Detections) -> Tensor | None:
        """[N, D, P, S, S] keypoint logits on the boxes of the detections (input frame); None without a keypoint
        head."""
        ...

    def keypoints(self, features: State, heatmaps: Tensor, detections: Detections) -> Tensor:
        """[N, D, P, 3] keypoints in the frame of the detections, of `heatmaps`."""
        ...


@dataclass(frozen=True)
class View:
    """One look at a batch.

    Attributes:
        images: in this view's size; mirrored left to right within their own size where `flipped`.
        flipped: they are.
    """

    images: ImageBatch
    flipped: bool = False


def mirrored(images: ImageBatch) -> ImageBatch:
    """The images mirrored left to right, each within its own size; the padding stays right of and below it."""
    columns = torch.arange(images.pixels.shape[-1], device=images.pixels.device)
    widths = images.input_sizes[:, 1, None]
    origins = torch.where(columns < widths, widths - 1 - columns, columns)  # [N, W]
    pixels = images.pixels.gather(3, origins[:, None, None].expand_as(images.pixels))
    # gather gives torch's usual layout
    return replace(images, pixels=pixels.contiguous(memory_format=torch.channels_last))


@dataclass(frozen=True)
class MergeRule:
    """Which boxes of all views stay.

    Attributes:
        nms_overlap, nms_per_class, max_detections: as `BoxHeadConfig`. The suppression is a hard one even where a
            view's own is soft: several views of one object are to become one.
        averages: boxes are averaged in place of suppression, as `average_pairs` does, which made each view's.
        mirrored_keypoints: where each keypoint comes from in a mirrored image (`keypoints.mirror_keypoints`).
    """

    nms_overlap: float
    max_detections: int
    nms_per_class: bool = True
    mirrored_keypoints: tuple[int, ...] = ()
    averages: bool = False


def detect_in_views(
    detector: DetectsInSteps[State], views: Sequence[View], rule: MergeRule, proposals: Proposals | None = None
) -> Detections:
    """What the detector finds in all views together.

    Args:
        detector: on the device of the views.
        views: of the same images, in the same order; at least one.
        rule: how to merge.
        proposals: in the original frame, instead of the detector's own.

    Returns:
        Detections in the original frame, clipped to the image, best first.
    """
    states, per_view = [], []
    for view in views:
        state = detector.features(view.images)
        given = None if proposals is None else replace(proposals, boxes=boxes_in_view(proposals.boxes, view))
        detections = detector.boxes(state, given)
        per_view.append(replace(detections, boxes=boxes_from_view(detections.boxes, view)))
        states.append(state)
    merged = merge_detections(per_view, rule, fixed_size=states[0].fixed_size)
    seen = [replace(merged, boxes=boxes_in_view(merged.boxes, view)) for view in views]

    def mean(
        compute: Callable[[State, Detections], Tensor | None], restore: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """Mean over the views of what `compute` draws; `restore` turns a mirrored drawing back."""
        total: Tensor | None = None
        for view, state, boxes in zip(views, states, seen, strict=True):
            drawn = compute(state, boxes)
            if drawn is None:
                return None
            drawn = (restore(drawn) if view.flipped else drawn).float()
            total = drawn if total is None else total + drawn
        return None if total is None else total / len(views)

    def restored_heatmaps(heatmaps: Tensor) -> Tensor:
        # Without an index, which would have to be copied to the device and waited for.
        return torch.stack([heatmaps[:, :, index] for index in rule.mirrored_keypoints], dim=2).flip(-1)

    masks = mean(detector.masks, lambda masks: masks.flip(-1))
    heatmaps = mean(detector.heatmaps, restored_heatmaps)
    keypoints = None
    if heatmaps is not None:
        # In a view's frame rather than the original one: its size, and so the work, is bounded.
        upright = View(views[0].images)
        in_view = replace(merged, boxes=boxes_in_view(merged.boxes, upright))
        points = detector.keypoints(states[0], heatmaps, in_view)
        points = keypoints_in_original(points, upright.images)
        keypoints = torch.where(merged.valid[..., None, None], points, 0.0)
    return replace(merged, masks=masks, keypoints=keypoints)


def merge_detections(per_view: Sequence[Detections], rule: MergeRule, *, fixed_size: bool = False) -> Detections:
    """Non-maximum suppression over the detections of all views, within each class, or their average; the best
    `max_detections` stay.

    Args:
        per_view: of each view, in one common frame; their masks and keypoints are dropped.
        fixed_size: no shape depends on data.

    Returns:
        Detections with D = max_detections slots; unless `fixed_size` only as many as the fullest image needs.
    """
    boxes, scores, labels, valid = (
        torch.cat([getattr(detections, name) for detections in per_view], dim=1)
        for name in ("boxes", "scores", "labels", "valid")
    )
    groups = labels if rule.nms_per_class else torch.zeros_like(labels)
    if rule.averages:
        sums = scores / (1.0 - scores)  # the inverse of `summed_score`
        boxes, sums, keep = average_pairs(boxes, sums, groups, valid, rule.nms_overlap, fixed_size=fixed_size)
        scores = summed_score(sums)
    else:
        keep = suppress(boxes, scores, groups, valid, rule.nms_overlap, fixed_size=fixed_size)
    order, count = keep_best(keep, scores, rule.max_detections, fixed_size=fixed_size)
    real = valid_slots(count, order.shape[1])
    return Detections(
        boxes=real_or_unit(boxes.gather(1, order[..., None].expand(-1, -1, 4)), real),
        scores=torch.where(real, scores.gather(1, order), 0.0),
        labels=torch.where(real, labels.gather(1, order), 0),
        count=count,
    )


def boxes_from_view(boxes: Tensor, view: View) -> Tensor:
    """[N, D, 4] boxes of a view in the original frame, clipped to the image."""
    images = view.images
    upright = _mirrored(boxes, images.input_sizes) if view.flipped else boxes
    return clipped_boxes_in_original(upright, images)


def boxes_in_view(boxes: Tensor, view: View) -> Tensor:
    """[N, D, 4] boxes of the original frame in that of a view."""
    scaled = boxes_in_input(boxes, view.images)
    return _mirrored(scaled, view.images.input_sizes) if view.flipped else scaled


def _mirrored(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes of images mirrored left to right: [N, D, 4], [N, 2] (height, width)."""
    widths = sizes[:, 1, None].to(boxes.dtype)
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((widths - x2, y1, widths - x1, y2), dim=-1)
