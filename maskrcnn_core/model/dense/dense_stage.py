"""The dense stage: what is computed for every position of the pyramid (tutorial, "the number of stages").

With one class its outputs are proposals for a region stage; with K classes they are detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.anchors import AnchorRule, pyramid_anchors
from maskrcnn_core.model.dense.class_selection import best_of_each_class
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.dense.losses import DenseLoss
from maskrcnn_core.model.dense.selection import ProposalRule, best_detections, best_proposals
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.survivors import DetectionRule
from maskrcnn_core.structures import DenseOutputs, Detections, ImageFeatures, Proposals, Targets

# Shapes of batches whose anchors are kept, a few megabytes each.
_SHAPES_WITH_ANCHORS = 8


@dataclass(frozen=True)
class DenseRules:
    """What becomes of a dense stage's outputs.

    Attributes:
        train, test: which become proposals, while a region stage learns and at inference.
        detection: which become detections.
        score_from: how outputs become scores, as in `scores.level_scores`.
        candidates_of: whether the detection rule's `max_candidates` are of each "level", of the "image" or of each
            "class".
    """

    train: ProposalRule
    test: ProposalRule
    detection: DetectionRule
    score_from: str = "sigmoid"
    candidates_of: str = "level"


class DenseStage(nn.Module):
    """Head, anchors, box coding, loss and selection.

    Args:
        head: levels -> outputs of every anchor.
        anchors: where they lie.
        coding: of the deltas.
        loss: what the head learns by.
        rules: what becomes of its outputs.
    """

    def __init__(
        self, head: DenseHead, anchors: AnchorRule, coding: BoxCoding, loss: DenseLoss, rules: DenseRules
    ) -> None:
        super().__init__()
        self.head, self.anchors, self.coding, self.loss, self.rules = head, anchors, coding, loss, rules
        self._grids: dict[object, list[Tensor]] = {}

    def losses(self, features: ImageFeatures, targets: Targets) -> dict[str, LossSum]:
        """Losses by name, as its loss has them."""
        return self.loss(self.head, features, self.grid(features), self.coding, targets)

    def losses_and_proposals(self, features: ImageFeatures, targets: Targets) -> tuple[dict[str, LossSum], Proposals]:
        """`losses`, and the proposals that a region stage learns on; of a head whose loss sees all anchors the same
        outputs serve for both."""
        head = _ComputedOnce(self.head)
        losses = self.loss(head, features, self.grid(features), self.coding, targets)
        with torch.no_grad():
            return losses, self._best_of(head(features.maps), features, self.rules.train)

    @torch.no_grad()
    def proposals(self, features: ImageFeatures, rule: ProposalRule) -> Proposals:
        """Regions in the input frame: suppression within each level, whatever the class."""
        return self._best_of(self.head(features.maps), features, rule)

    def _best_of(self, outputs: DenseOutputs, features: ImageFeatures, rule: ProposalRule) -> Proposals:
        return best_proposals(
            outputs,
            self.grid(features),
            features.input_sizes,
            self.coding,
            rule,
            score_from=self.rules.score_from,
            fixed_size=features.fixed_size,
        )

    @torch.no_grad()
    def detections(self, features: ImageFeatures) -> Detections:
        """Boxes, scores and labels in the input frame: suppression within each class, over all levels."""
        rules, fixed = self.rules, features.fixed_size
        outputs, grid, sizes = self.head(features.maps), self.grid(features), features.input_sizes
        if rules.candidates_of == "class":
            return best_of_each_class(
                outputs, grid, sizes, self.coding, rules.detection, score_from=rules.score_from, fixed_size=fixed
            )
        return best_detections(
            outputs,
            grid,
            sizes,
            self.coding,
            rules.detection,
            score_from=rules.score_from,
            candidates_of=rules.candidates_of,
            fixed_size=fixed,
        )

    def with_rules(self, rules: DenseRules) -> "DenseStage":
        """The same stage (its weights are shared) with other rules."""
        return DenseStage(self.head, self.anchors, self.coding, self.loss, rules)

    def grid(self, features: ImageFeatures) -> list[Tensor]:
        """Anchors of the batch, per level [A_l, 4], kept for the next one, which mostly has one of a few shapes."""
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in features.maps)
        device = features.maps[0].device
        key = (features.input_shape, shapes, device)
        grid = self._grids.get(key)
        if grid is None:
            grid = pyramid_anchors(self.anchors, features.strides, shapes, features.input_shape, device)
            # Another cache instead of a change of this one, which another thread may be reading.
            newest = list(self._grids.items())[1 - _SHAPES_WITH_ANCHORS :]
            self._grids = dict([*newest, (key, grid)])
        return grid

    def kept_grids(self) -> list[list[Tensor]]:
        """Anchors that are kept now; whoever records computations that read them has to keep them, too."""
        return list(self._grids.values())


class _ComputedOnce:
    """A head whose outputs of all anchors are computed at the first call only; every call is with the same maps."""

    def __init__(self, head: DenseHead) -> None:
        self._head = head
        self._outputs: DenseOutputs | None = None

    def __call__(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """See `DenseHead`."""
        if self._outputs is None:
            self._outputs = self._head(maps)
        return self._outputs

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead`."""
        return self._head.at(maps, index)
