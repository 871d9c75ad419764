"""The sampled loss of a dense head: by hand, its empty cases, and the box losses that it can use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from maskrcnn_core.boxes import decode_deltas, encode_deltas
from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.dense.head import at_anchors
from maskrcnn_core.model.dense.losses import SampledLoss
from maskrcnn_core.model.loss_counts import divided, own_count
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets

UNIT = (1.0, 1.0, 1.0, 1.0)
EVERYTHING = SampledLoss(
    positive_overlap=0.7,
    negative_overlap=0.3,
    batch_size=1000,
    positive_fraction=1.0,
    crowd_overlap=0.7,
    smooth_l1_beta=1 / 9,
)

each_size = pytest.mark.parametrize("fixed_size", [False, True])


def boxes_at(*corners: tuple[float, float], side: float = 10.0) -> Tensor:
    return torch.tensor([[x, y, x + side, y + side] for x, y in corners])


@dataclass(frozen=True)
class FixedHead:
    """A head that says the same whatever it sees."""

    outputs: DenseOutputs

    def __call__(self, maps: Sequence[Tensor]) -> DenseOutputs:
        return self.outputs

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        return at_anchors(self.outputs, index)


def losses_of(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    targets: Targets,
    rule: SampledLoss,
    fixed_size: bool,
) -> dict[str, Tensor]:
    """The loss of a head with these outputs of all anchors, level by level; logits [N, A_l]."""
    head = FixedHead(DenseOutputs([level[..., None] for level in logits], list(deltas)))
    sizes = torch.full((len(targets.boxes), 2), 200)
    features = ImageFeatures([], (), sizes, torch.zeros(len(sizes), 3, 200, 200), fixed_size=fixed_size)
    return divided(rule(head, features, anchors, DeltaCoding(), targets), own_count)


def targets_of(boxes: Tensor, valid: Tensor, crowd: Tensor) -> Targets:
    return Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), valid, crowd)


@each_size
def test_losses_by_hand(fixed_size: bool) -> None:
    anchors = boxes_at((0, 0), (40, 40), (80, 80), (120, 0))
    # Image 0: the first anchor is positive (IoU 0.9), the others negative. Image 1: nothing in it, but the last
    # anchor lies in a crowd.
    boxes = torch.tensor([[[0.0, 0, 10, 9], [float("nan")] * 4], [[110.0, 0, 150, 40], [0, 0, 0, 0]]])
    boxes = boxes.nan_to_num(0.0)
    valid = torch.tensor([[True, False], [False, False]])
    crowd = torch.tensor([[False, False], [True, False]])
    torch.manual_seed(0)
    logits, deltas = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, 4, requires_grad=True)
    losses = losses_of(
        [logits[:, :3], logits[:, 3:]],
        [deltas[:, :3], deltas[:, 3:]],
        [anchors[:3], anchors[3:]],
        targets_of(boxes, valid, crowd),
        EVERYTHING,
        fixed_size,
    )
    sampled = torch.cat((logits[0], logits[1, :3]))
    wanted = torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(losses["rpn_objectness"], functional.binary_cross_entropy_with_logits(sampled, wanted))
    target = encode_deltas(boxes[0, 0], anchors[0], UNIT)
    expected = functional.smooth_l1_loss(deltas[0, 0], target, beta=1 / 9, reduction="sum") / 7
    torch.testing.assert_close(losses["rpn_box"], expected)
    sum(losses.values()).backward()
    assert logits.grad[1, 3] == 0
    assert (deltas.grad.abs().sum(dim=2) > 0).nonzero().tolist() == [[0, 0]]


@each_size
def test_nothing_to_sample_is_zero_and_finite(fixed_size: bool) -> None:
    anchors = boxes_at((0, 0), (40, 40))
    crowd = torch.tensor([[[0.0, 0, 100, 100]]])
    logits, deltas = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, 4, requires_grad=True)
    yes, no = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    losses = losses_of([logits], [deltas], [anchors], targets_of(crowd, no, yes), EVERYTHING, fixed_size)
    assert {name: loss.item() for name, loss in losses.items()} == {"rpn_objectness": 0.0, "rpn_box": 0.0}
    sum(losses.values()).backward()
    assert not logits.grad.any()


@each_size
@pytest.mark.parametrize(("kind", "peer"), [("giou", generalized_box_iou_loss), ("ciou", complete_box_iou_loss)])
def test_overlap_losses_compare_decoded_boxes(
    kind: str, peer: Callable[[Tensor, Tensor], Tensor], fixed_size: bool
) -> None:
    anchors = boxes_at((0, 0), (40, 40), (80, 80))
    boxes = torch.tensor([[[0.0, 0, 10, 9], [41, 40, 50, 50]]])
    real = torch.ones(1, 2, dtype=torch.bool)
    torch.manual_seed(0)
    logits, deltas = torch.randn(1, 3), (0.3 * torch.randn(1, 3, 4)).requires_grad_()
    rule = replace(EVERYTHING, box_loss=kind)
    losses = losses_of([logits], [deltas], [anchors], targets_of(boxes, real, ~real), rule, fixed_size)
    expected = peer(decode_deltas(deltas[0, :2], anchors[:2], UNIT), boxes[0]).sum() / 3
    torch.testing.assert_close(losses["rpn_box"], expected)
    losses["rpn_box"].backward()
    assert (deltas.grad.abs().sum(dim=2) > 0).tolist() == [[True, True, False]]


@each_size
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_full_precision_losses(dtype: torch.dtype, fixed_size: bool) -> None:
    anchors = boxes_at((0, 0), (40, 40))
    logits, deltas = [torch.zeros(1, 2, dtype=dtype)], [torch.zeros(1, 2, 4, dtype=dtype)]
    one = torch.ones(1, 1, dtype=torch.bool)
    losses = losses_of(logits, deltas, [anchors], targets_of(anchors[None, :1], one, ~one), EVERYTHING, fixed_size)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_sums_are_divided_by_what_the_count_says() -> None:
    anchors = boxes_at((0, 0), (40, 40))
    one = torch.ones(1, 1, dtype=torch.bool)
    targets, asked = targets_of(anchors[None, :1], one, ~one), []
    head = FixedHead(DenseOutputs([torch.zeros(1, 2, 1)], [torch.ones(1, 2, 4)]))
    features = ImageFeatures([], (), torch.full((1, 2), 99), torch.zeros(1, 3, 99, 99))

    def count(numbers: Tensor) -> Tensor:
        asked.append(numbers.tolist())
        return numbers * 5

    sums = EVERYTHING(head, features, [anchors], DeltaCoding(), targets)
    own, fifth = divided(sums, own_count), divided(sums, count)
    assert asked == [[2, 2]]  # once for all
    for name, loss in own.items():
        assert loss > 0
        torch.testing.assert_close(fifth[name], loss / 5)
