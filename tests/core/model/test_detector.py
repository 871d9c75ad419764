"""The whole detector, small: finite losses that reach every part, detections in bounds, and learning two images."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.data.targets import ImageTargets, pad_targets, targets_from_dense
from maskrcnn_core.data.transform import pad_batch
from maskrcnn_core.masks import paste_mask
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.regions import parts
from maskrcnn_core.structures import Detections, ImageBatch, Targets
from tests.core.slots import trimmed
from tests.small_detector import FINDING

CONFIG = replace(
    FINDING,
    dense=DenseConfig(pre_nms_train=100, pre_nms_test=100, post_nms_train=50, post_nms_test=30, batch_size=64),
    regions=RegionsConfig(batch_size=16),
    box_head=BoxHeadConfig(channels=32, max_detections=12),
    categories=(Category(1, "disc"), Category(5, "square"), Category(9, "cross")),
)
STEPS = 120  # of the run that learns two images
LOSSES = {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_mask"}


def part_of(name: str) -> str:
    """Which part of a detector a weight belongs to: trunk, pyramid, dense, regions.box, ..."""
    first, second, *_ = name.split(".")
    return f"regions.{second}" if first == "regions" else first


def build(config: ModelConfig = CONFIG, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return build_detector(config, load_pretrained=config.backbone.pretrained)


def images_of(*sizes: tuple[int, int], seed: int = 0) -> ImageBatch:
    generator = torch.Generator().manual_seed(seed)
    return pad_batch([torch.randn(3, *size, generator=generator) for size in sizes], list(sizes), 32)


def picture_targets(size: tuple[int, int], with_objects: bool = True) -> ImageTargets:
    """A disc of class 0 and a square of class 1."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    disc = (y - 30) ** 2 + (x - 30) ** 2 < 20**2
    square = (y >= 50) & (y < 80) & (x >= 55) & (x < 90)
    masks = torch.stack((disc, square))
    boxes = torch.tensor([[11.0, 11, 50, 50], [55, 50, 90, 80]])
    number = 2 if with_objects else 0
    return targets_from_dense(boxes[:number], torch.tensor([0, 1])[:number], masks[:number])


def as_crowd(targets: ImageTargets) -> ImageTargets:
    return replace(targets, crowd=torch.ones(len(targets), dtype=torch.bool))


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_losses_are_finite_and_reach_every_part(agnostic: bool, soft: bool) -> None:
    config = replace(
        CONFIG,
        box_head=replace(CONFIG.box_head, class_agnostic=agnostic),
        mask_head=replace(CONFIG.mask_head, class_agnostic=agnostic, soft_targets=soft),
    )
    detector = build(config).train()
    sizes = [(96, 96), (90, 120)]
    losses = detector(images_of(*sizes), pad_targets([picture_targets(size) for size in sizes]))
    assert set(losses) == LOSSES
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    # Untrained heads: every class is as likely as another, every mask pixel a coin toss.
    assert losses["roi_class"].item() == pytest.approx(torch.tensor(4.0).log().item(), rel=0.1)
    assert losses["roi_mask"].item() == pytest.approx(torch.tensor(2.0).log().item(), rel=0.05)
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for part in (
        detector.trunk,
        detector.pyramid,
        detector.dense.head,
        detector.regions.box.head,
        detector.regions.mask.head,
    ):
        assert all(parameter.grad.any() for parameter in part.parameters() if parameter.ndim == 4)


def test_each_loss_reaches_its_own_parts_only() -> None:
    detector = build().train()
    reached = {
        "rpn_objectness": {"trunk", "pyramid", "dense"},
        "rpn_box": {"trunk", "pyramid", "dense"},
        "roi_class": {"trunk", "pyramid", "regions.box"},
        "roi_box": {"trunk", "pyramid", "regions.box"},
        "roi_mask": {"trunk", "pyramid", "regions.mask"},
    }
    losses = detector(images_of((96, 96)), pad_targets([picture_targets((96, 96))]))
    for name, expected in reached.items():
        detector.zero_grad(set_to_none=True)
        losses[name].backward(retain_graph=True)
        moved = {part_of(key) for key, p in detector.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == expected, name


@pytest.mark.parametrize(
    "targets",
    [
        [picture_targets((96, 96), False), picture_targets((96, 96), False)],
        [picture_targets((96, 96), False), picture_targets((96, 96))],
        [as_crowd(picture_targets((96, 96))), as_crowd(picture_targets((96, 96)))],
        [as_crowd(picture_targets((96, 96))), picture_targets((96, 96), False)],
    ],
    ids=["no objects", "one image without", "crowd only", "crowd and nothing"],
)
def test_images_with_nothing_to_learn(targets: list[ImageTargets]) -> None:
    detector = build().train()
    losses = detector(images_of((96, 96), (96, 96)), pad_targets(targets))
    assert set(losses) == LOSSES
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    if not any((~image.crowd).any() for image in targets):
        assert losses["rpn_box"] == losses["roi_box"] == losses["roi_mask"] == 0
        assert losses["rpn_objectness"] > 0


def widened(targets: Targets, slots: int) -> Targets:
    """The same with further slots of padding that hold garbage where a value has no meaning."""

    def pad(tensor: Tensor, value: float) -> Tensor:
        extra = tensor.new_full((len(tensor), slots, *tensor.shape[2:]), value)
        return torch.cat((tensor, extra), dim=1)

    assert targets.masks is not None
    assert targets.mask_boxes is not None
    return Targets(
        boxes=torch.cat((targets.boxes, targets.boxes[:, :1].expand(-1, slots, -1)), dim=1),
        labels=pad(targets.labels, 2),
        valid=pad(targets.valid, False),
        crowd=pad(targets.crowd, False),
        masks=pad(targets.masks, 255),
        mask_boxes=pad(targets.mask_boxes, 0),
    )


@torch.no_grad()
def test_padding_of_targets_changes_no_loss() -> None:
    everything = 10**5
    config = replace(
        CONFIG,
        dense=replace(CONFIG.dense, batch_size=everything, positive_fraction=1.0),
        regions=replace(CONFIG.regions, batch_size=everything, positive_fraction=1.0),
    )
    detector = build(config).train()
    images, targets = images_of((96, 96)), pad_targets([picture_targets((96, 96))])
    expected, got = detector(images, targets), detector(images, widened(targets, 3))
    for name, loss in expected.items():
        assert got[name].item() == pytest.approx(loss.item(), rel=1e-5), name


def test_box_detector() -> None:
    detector = build(replace(CONFIG, mask_head=replace(CONFIG.mask_head, enabled=False))).train()
    targets = picture_targets((96, 96))
    bare = replace(targets, masks=None, mask_boxes=None)
    losses = detector(images_of((96, 96)), pad_targets([bare]))
    assert set(losses) == LOSSES - {"roi_mask"}
    found = detector.eval().detect(images_of((96, 96)))
    assert found.masks is None
    assert int(found.count[0]) > 0
    empty = detector.train()(images_of((96, 96)), pad_targets([replace(picture_targets((96, 96), False), masks=None)]))
    assert all(loss.isfinite() for loss in empty.values())


def test_proposals_are_inside_the_image_and_sorted() -> None:
    detector = build().eval()
    proposals = detector.propose(images_of((96, 96), (70, 128)))
    assert (proposals.count <= 30).all()
    assert (proposals.count > 5).all()
    for boxes, scores, valid, (height, width) in zip(
        proposals.boxes, proposals.scores, proposals.valid, [(96, 96), (70, 128)], strict=True
    ):
        real = boxes[valid]
        assert (real >= 0).all()
        assert (real[:, 2] <= width).all()
        assert (real[:, 3] <= height).all()
        assert (scores[valid].diff() <= 0).all()


@pytest.mark.parametrize("agnostic", [False, True])
def test_detections_are_in_bounds_sorted_and_at_most_the_maximum(agnostic: bool) -> None:
    config = replace(
        CONFIG,
        box_head=replace(CONFIG.box_head, class_agnostic=agnostic),
        mask_head=replace(CONFIG.mask_head, class_agnostic=agnostic),
    )
    sizes = [(96, 96), (70, 128)]
    found = build(config).eval().detect(images_of(*sizes))
    assert found.count.tolist() == [12, 12]  # untrained, each class scores 1/4: far more than enough
    assert found.masks.shape == (2, 12, 28, 28)
    assert ((found.masks >= 0) & (found.masks <= 1)).all()
    for index, (height, width) in enumerate(sizes):
        boxes = found.boxes[index]
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= width).all()
        assert (boxes[:, [1, 3]] <= height).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()
        assert (found.scores[index].diff() <= 0).all()
        assert ((found.labels[index] >= 0) & (found.labels[index] < 3)).all()


@pytest.mark.parametrize("masks", [True, False])
def test_nothing_found(masks: bool) -> None:
    config = replace(
        CONFIG,
        box_head=replace(CONFIG.box_head, min_score=1.0),
        mask_head=replace(CONFIG.mask_head, enabled=masks),
    )
    found = trimmed(build(config).eval().detect(images_of((96, 96), (64, 64))))
    assert found.count.tolist() == [0, 0]
    assert found.boxes.shape == (2, 0, 4)
    assert (found.masks is None) == (not masks)
    if masks:
        assert found.masks.shape == (2, 0, 28, 28)


def assert_same_detections(got: Detections, index: int, expected: Detections) -> None:
    count = int(expected.count[0])
    assert int(got.count[index]) == count
    assert torch.equal(got.labels[index, :count], expected.labels[0, :count])
    torch.testing.assert_close(got.boxes[index, :count], expected.boxes[0, :count], atol=1e-2, rtol=0)
    torch.testing.assert_close(got.scores[index, :count], expected.scores[0, :count], atol=1e-4, rtol=0)
    torch.testing.assert_close(got.masks[index, :count], expected.masks[0, :count], atol=1e-3, rtol=0)


def decided(seed: int = 0) -> Detector:
    """With scores so far apart that rounding decides no rank."""
    detector = build(seed=seed).eval()
    with torch.no_grad():
        detector.regions.box.head.classes.weight.mul_(50)
        detector.dense.head.logits.weight.mul_(50)
    return detector


def test_a_batch_is_one_by_one() -> None:
    # Different sizes that are padded to the same shape.
    sizes = [(96, 128), (80, 100), (90, 128)]
    detector, batch = decided(), images_of(*sizes)
    together = detector.detect(batch)
    assert len({int(count) for count in together.count}) >= 1
    for index in range(len(sizes)):
        one = slice(index, index + 1)
        alone = ImageBatch(batch.pixels[one], batch.input_sizes[one], batch.original_sizes[one])
        assert_same_detections(together, index, detector.detect(alone))


def test_anchors_follow_a_change_of_shape() -> None:
    detector = decided()
    first = detector.detect(images_of((96, 128)))
    other = detector.detect(images_of((128, 96), seed=1))
    assert_same_detections(detector.detect(images_of((96, 128))), 0, first)
    assert_same_detections(detector.detect(images_of((128, 96), seed=1)), 0, other)
    assert bool((detector.propose(images_of((128, 96), seed=1)).boxes[..., 3] > 96).any())


def drawn(size: int, seed: int, first: tuple[int, int], second: tuple[int, int]) -> tuple[Tensor, ImageTargets]:
    """Pixels and targets: a bright disc and a dark square on noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = (y - first[0]) ** 2 + (x - first[1]) ** 2 < 18**2
    square = ((y - second[0]).abs() < 15) & ((x - second[1]).abs() < 20)
    pixels = torch.randn(3, size, size, generator=generator) * 0.1
    pixels[:, disc] += torch.tensor([2.0, 0.0, -1.0])[:, None]
    pixels[:, square] += torch.tensor([-1.5, 0.5, 2.0])[:, None]
    boxes = [[first[1] - 17.0, first[0] - 17.0, first[1] + 18.0, first[0] + 18.0]]
    boxes += [[second[1] - 19.0, second[0] - 14.0, second[1] + 20.0, second[0] + 15.0]]
    masks = torch.stack((disc, square))
    return pixels, targets_from_dense(torch.tensor(boxes), torch.tensor([0, 1]), masks)


def mask_overlap(found: Detections, image: int, slot: int, wanted: Tensor) -> float:
    height, width = wanted.shape
    pasted = paste_mask(found.masks[image, slot].numpy(), found.boxes[image, slot].numpy(), height, width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = pasted.columns.shape[1], pasted.columns.shape[0]
    window = torch.from_numpy(pasted.columns.T.copy())
    mask[pasted.top : pasted.top + rows, pasted.left : pasted.left + columns] = window
    return float((mask & wanted).sum() / (mask | wanted).sum())


def test_learns_two_images() -> None:
    config = replace(
        CONFIG,
        backbone=BackboneConfig(name="efficientnet_lite0", pretrained=True, frozen_stages=2),
        pyramid=PyramidConfig(channels=48),
        box_head=BoxHeadConfig(channels=128),
        mask_head=MaskHeadConfig(channels=48, layers=2),
    )
    size = 96
    places = [((30, 28), (70, 62)), ((66, 68), (24, 34))]
    pictures = [drawn(size, seed, *place) for seed, place in enumerate(places)]
    images = pad_batch([pixels for pixels, _ in pictures], [(size, size)] * 2, 32)
    targets = pad_targets([target for _, target in pictures])
    detector = build(config).train()
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    history = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 2 - 2 * step / STEPS)
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.25 * sum(history[:5]), history
    found = detector.eval().detect(images)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for index, (first, second) in enumerate(places):
        disc = (y - first[0]) ** 2 + (x - first[1]) ** 2 < 18**2
        square = ((y - second[0]).abs() < 15) & ((x - second[1]).abs() < 20)
        assert int(found.count[index]) >= 2
        # The two best are the two objects, each with its label and its mask; nothing else is as sure.
        best = {int(label): slot for slot, label in enumerate(found.labels[index, :2])}
        assert set(best) == {0, 1}
        assert found.scores[index, 1] > 0.5
        assert mask_overlap(found, index, best[0], disc) > 0.5
        assert mask_overlap(found, index, best[1], square) > 0.5


def test_hard_mask_targets_hold_one_half() -> None:
    """A cell of which the object covers exactly one half is the object's, as in detectron2."""
    detector = build(replace(CONFIG, mask_head=replace(CONFIG.mask_head, soft_targets=False))).train()
    images, targets = images_of((96, 96)), pad_targets([picture_targets((96, 96))])
    seen: list[Tensor] = []

    def watched(output: Tensor, wanted: Tensor, counted: Tensor) -> LossSum:
        seen.append(wanted)
        return LossSum(output.sum(), counted.sum())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "mask_targets", lambda *_, **__: torch.tensor([0.4999, 0.5, 1.0]))
        patch.setattr(parts, "mask_loss", watched)
        detector(images, targets)
    assert seen[0].tolist() == [0.0, 1.0, 1.0]
