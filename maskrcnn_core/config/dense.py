"""The dense stage: anchors, and what is predicted for each of them. Its parts have a file each."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_fraction, require_not_negative, require_typed
from maskrcnn_core.config.dense_anchors import AnchorConfig as AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.dense_head import BoxCodingConfig, DenseHeadConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.limits import MAX_LAYERS, MAX_REGIONS


@dataclass(frozen=True)
class DenseConfig:
    """What is predicted for every position: the Region Proposal Network (Ren et al., NeurIPS 2015; per level as in
    FPN), or a one-stage detector."""

    enabled: bool = True
    """False: no dense stage; proposals come from a file (data.train.proposals, jobs.label --proposals)."""
    finds: Literal["proposals", "detections"] = "proposals"
    """proposals = regions, whatever is in them, for a region stage; detections = objects of every category, without a
    box head behind (one-stage detectors)."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Anchor boxes."""
    head: DenseHeadConfig = field(default_factory=DenseHeadConfig)
    """The network."""
    coding: BoxCodingConfig = field(default_factory=BoxCodingConfig)
    """How its numbers say where a box is."""
    loss: DenseLossConfig = field(default_factory=DenseLossConfig)
    """What it learns by."""
    detection: DenseDetectionConfig = field(default_factory=DenseDetectionConfig)
    """Which of its boxes become detections, where it finds these."""
    convs: int = 1
    """3x3 convolutions before the predictors; of each tower (RetinaNet, FCOS: 4); 0 = none, for cells only."""
    positive_overlap: float = 0.7
    """An anchor with at least this IoU with an object is positive."""
    negative_overlap: float = 0.3
    """An anchor whose best IoU is below this is negative; between the two it is ignored."""
    batch_size: int = 256
    """Anchors sampled per image for the loss."""
    positive_fraction: float = 0.5
    """Upper limit of the positives' share among the sampled anchors."""
    crowd_overlap: float = 0.7
    """Anchors with more than this share of their area in a crowd region are no negatives."""
    pre_nms_train: int = 2000
    """Best anchors kept per level before NMS, training."""
    pre_nms_test: int = 1000
    """Best anchors kept per level before NMS, inference."""
    post_nms_train: int = 1000
    """Proposals kept per image after NMS, training."""
    post_nms_test: int = 1000
    """Proposals kept per image after NMS, inference."""
    nms_overlap: float = 0.7
    """IoU above which the weaker of two proposals of one level is dropped."""
    min_score: float = 0.0
    """Proposals less probable than this are dropped."""
    min_size: float = 1e-3
    """Proposals with a side shorter than this are dropped, input pixels."""
    box_loss: Literal["smooth_l1", "giou", "ciou"] = "smooth_l1"
    """Loss of the proposals' boxes: on deltas (smooth_l1) or on decoded boxes (giou, ciou)."""
    smooth_l1_beta: float = 1.0 / 9.0
    """Where the smooth L1 loss turns from square to linear; 0 = plain L1."""

    def __post_init__(self) -> None:
        require_typed("model.dense", self)
        require_between("model.dense.convs", self.convs, 0 if self.head.kind == "cells" else 1, MAX_LAYERS)
        for name in ("batch_size", "pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test"):
            require_between(f"model.dense.{name}", getattr(self, name), 1, MAX_REGIONS)
        for name in (
            "positive_overlap",
            "negative_overlap",
            "positive_fraction",
            "crowd_overlap",
            "nms_overlap",
            "min_score",
        ):
            require_fraction(f"model.dense.{name}", getattr(self, name))
        require(
            self.negative_overlap <= self.positive_overlap,
            "model.dense.negative_overlap",
            self.negative_overlap,
            f"at most model.dense.positive_overlap ({self.positive_overlap})",
        )
        require_not_negative("model.dense.min_size", self.min_size)
        require_not_negative("model.dense.smooth_l1_beta", self.smooth_l1_beta)
        self._check_parts()

    def _check_parts(self) -> None:
        """Parts that do not go together."""
        require(
            self.finds == "proposals" or self.loss.kind != "sampled",
            "model.dense.loss.kind",
            self.loss.kind,
            "focal, points, hard_negatives, cells, grid, assigned or box_masks where model.dense.finds is detections: "
            "sampled anchors learn no classes",
        )
        require(
            self.loss.kind != "points" or self.coding.kind == "edges",
            "model.dense.coding.kind",
            self.coding.kind,
            "edges where model.dense.loss.kind is points",
        )
        self._check_cells()
        self._check_places()
        score_from = self.detection.score_from
        require(
            score_from != "centreness" or self.head.objectness,
            "model.dense.detection.score_from",
            score_from,
            "sigmoid where model.dense.head.objectness is false: nothing says how central an anchor is",
        )
        require(
            not self.head.objectness or self.loss.kind == "points",
            "model.dense.head.objectness",
            self.head.objectness,
            f"false where model.dense.loss.kind is {self.loss.kind}: nothing teaches it",
        )
        require(
            score_from != "softmax" or self.loss.kind not in ("focal", "points", "assigned"),
            "model.dense.detection.score_from",
            score_from,
            f"sigmoid where model.dense.loss.kind is {self.loss.kind}, which learns each class by itself",
        )

    def _check_places(self) -> None:
        """Anchors with places of their own need a head that has no positions, and the other way round."""
        require(
            (self.head.kind == "global") == (self.anchors.kind == "boxes"),
            "model.dense.anchors.kind",
            self.anchors.kind,
            f"{'boxes' if self.head.kind == 'global' else 'another'} where model.dense.head.kind is {self.head.kind}",
        )
        require(
            self.coding.kind != "corners" or self.anchors.kind == "boxes",
            "model.dense.coding.kind",
            self.coding.kind,
            f"another where model.dense.anchors.kind is {self.anchors.kind}: corners are parts of the input",
        )

        self._check_window()
        self._check_box_masks()

    def _check_box_masks(self) -> None:
        """DetectorNet's parts, which need each other."""
        is_wanted = self.loss.kind == "box_masks"
        for name, value, wanted in (
            ("head.kind", self.head.kind, "box_masks"),
            ("detection.score_from", self.detection.score_from, "linear"),
        ):
            require(
                (value == wanted) == is_wanted,
                f"model.dense.{name}",
                value,
                f"{wanted if is_wanted else 'another'} where model.dense.loss.kind is {self.loss.kind}",
            )
        require(
            not is_wanted or (self.anchors.kind == "priors" and self.coding.kind == "deltas"),
            "model.dense.anchors.kind",
            self.anchors.kind,
            "priors, with model.dense.coding.kind deltas, where model.dense.loss.kind is box_masks",
        )

    def _check_window(self) -> None:
        """A window is around the middle of its cell, or ends there, and is its only anchor."""
        if self.head.kind != "windows":
            return
        offset = 0.5 if self.head.pool * self.head.window % 2 else 1.0
        require(
            self.anchors.kind == "priors"
            and self.anchors.offset == offset
            and all(len(level) == 1 for level in self.anchors.priors),
            "model.dense.anchors",
            f"kind {self.anchors.kind}, offset {self.anchors.offset}",
            f"kind priors with one prior a level, and offset {offset} where model.dense.head.kind is windows and a "
            f"window has {self.head.pool} x {self.head.window} cells a side",
        )

    def _check_cells(self) -> None:
        """YOLO's parts, which need each other: loss, code, head and score."""
        together = {"cells": ("cells", "cells", "conditional"), "grid": ("roots", "whole_map", "product")}
        wanted = together.get(self.loss.kind)
        parts = (("coding.kind", self.coding.kind), ("head.kind", self.head.kind))
        for place, (name, value) in enumerate((*parts, ("detection.score_from", self.detection.score_from))):
            of_others = {values[place] for kind, values in together.items() if kind != self.loss.kind}
            require(
                value == wanted[place] if wanted else value not in of_others,
                f"model.dense.{name}",
                value,
                f"{wanted[place] if wanted else 'another'} where model.dense.loss.kind is {self.loss.kind}",
            )
        require(
            wanted is None or (self.anchors.kind == "priors" and self.anchors.offset == 0.5),
            "model.dense.anchors",
            f"kind {self.anchors.kind}, offset {self.anchors.offset}",
            f"kind priors and offset 0.5 where model.dense.loss.kind is {self.loss.kind}",
        )
