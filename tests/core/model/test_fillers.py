"""What fills a slot is harmless: in the shapes of a GPU, images with objects, without, with a crowd alone and with tiny
objects learn and are looked at in every order, at a bounded cost, with the numbers that the real slots alone give."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.config.heads import KeypointHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.data.coco.dataset import CocoImage, CocoObject
from maskrcnn_core.data.proposals import ImageProposals, pad_proposals
from maskrcnn_core.data.targets import ImageTargets, object_targets, pad_targets
from maskrcnn_core.inference.views import MergeRule, View, detect_in_views, merge_detections, mirrored
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.heads.mask import mask_loss
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.regions import parts
from maskrcnn_core.structures import Detections, ImageBatch, Proposals, Targets, real_or_unit, with_a_slot
from tests.core.model.test_detector import CONFIG

SIZE = (64, 96)
CONTENTS = ("some", "none", "crowd", "tiny")
NAMES = ("left_a", "right_a")

# In a bin of a region: of the whole image in 7 bins of cells of 4 pixels, or of a mask twice as large as its box.
MOST_SAMPLES = 64

Corners = tuple[float, float, float, float]


def objects(content: str) -> tuple[CocoObject, ...]:
    def of(box: Corners, mask: Corners | None = None, crowd: bool = False) -> CocoObject:
        x1, y1, x2, y2 = mask or box
        polygon = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        points = (x1, y1, 2.0, x2 - 1, y2 - 1, 1.0)
        rle = {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}
        return CocoObject(1, 1, box, 1.0, crowd, rle if crowd else polygon, None if crowd else points)

    return {
        "some": (of((10.0, 8, 50, 40)), of((30.0, 20, 90, 60))),
        "none": (),
        "crowd": (of((5.0, 5, 90, 60), crowd=True),),
        # Less than a pixel, at the border, and a mask of two pixels in a box of the whole image.
        "tiny": (
            of((20.0, 20, 20.3, 20.2)),
            of((95.9, 63.9, 96, 64)),
            of((0.0, 0, 96, 64), mask=(40.0, 30, 42, 31)),
            of((60.0, 10, 64, 14)),
        ),
    }[content]


def image_targets(content: str) -> ImageTargets:
    image = CocoImage(1, "x", width=SIZE[1], height=SIZE[0], objects=objects(content))
    return object_targets(image, {1: 0}, input_size=SIZE, mask_size=112, keypoint_names=NAMES)


def pixels_of(content: str) -> Tensor:
    return torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(CONTENTS.index(content)))


def images_of(order: tuple[str, ...]) -> ImageBatch:
    pixels = torch.stack([pixels_of(content) for content in order]).contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([SIZE] * len(order))
    return ImageBatch(pixels, sizes, sizes)


def targets_of(order: tuple[str, ...]) -> Targets:
    seeds = torch.tensor([11 + CONTENTS.index(content) for content in order])
    return replace(pad_targets([image_targets(content) for content in order]), seeds=seeds)


class Levels(nn.Module):
    """A pyramid that costs nothing: one 1x1 convolution and means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features = self.conv(pixels)
        return [functional.avg_pool2d(features, stride, ceil_mode=True) for stride in (4, 8, 16, 32, 64)]


def with_levels(detector: Detector, *, fixed_size: bool) -> Detector:
    """The detector's stages on `Levels`, always the same, in the shapes of a CPU or of a GPU."""
    assert detector.dense is not None or detector.regions is not None
    torch.manual_seed(1)
    return Detector(
        detector.trunk,
        detector.pyramid,
        detector.dense,
        detector.regions,
        fixed_size_on=("cpu",) if fixed_size else (),
        maps=Levels(CONFIG.pyramid.channels),
    )


def detector_of(sampling_ratio: int, *, fixed_size: bool, on_proposals: bool = False) -> Detector:
    """Always the same weights."""
    keypoints = KeypointHeadConfig(enabled=True, channels=8, layers=1, names=NAMES, categories=("person",))
    config = replace(
        CONFIG,
        regions=replace(RegionsConfig(batch_size=16), sampling_ratio=sampling_ratio),
        mask_head=replace(CONFIG.mask_head, regions="proposals" if on_proposals else "refined"),
        keypoint_head=keypoints,
        categories=(Category(1, "person"), *CONFIG.categories[1:]),
    )
    assert isinstance(config, ModelConfig)
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=False)
    assert detector.regions is not None
    with torch.no_grad():  # scores that differ from place to place
        detector.regions.box.head.classes.weight.mul_(10)
    return with_levels(detector, fixed_size=fixed_size)


class Samples:
    """Counts what `roi_align` is asked for, before it begins."""

    def __init__(self) -> None:
        self.calls = 0
        self._align = torchvision.ops.roi_align

    def __call__(
        self, maps: Tensor, rois: Tensor, size: int | tuple[int, int], scale: float, ratio: int, aligned: bool
    ) -> Tensor:
        bins = torch.tensor([size, size] if isinstance(size, int) else [size[1], size[0]])
        sides = (rois[:, 3:] - rois[:, 1:3]) * scale
        grid = (sides if aligned else sides.clamp(min=1.0)) / bins if ratio < 1 else torch.full_like(sides, ratio)
        assert torch.isfinite(grid).all()
        worst = float(grid.ceil().double().prod(dim=1).max()) if len(rois) else 0.0
        assert worst <= MOST_SAMPLES, f"{worst:.3g} samples of a bin"
        self.calls += 1
        return self._align(maps, rois, size, scale, ratio, aligned)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No more samples than a few are asked for."""
    samples = Samples()
    monkeypatch.setattr(torchvision.ops, "roi_align", samples)
    yield
    assert samples.calls > 0


def losses_and_gradients(detector: Detector, order: tuple[str, ...]) -> tuple[Tensor, list[Tensor]]:
    detector.zero_grad()
    losses = torch.stack(list(detector(images_of(order), targets_of(order)).values()))
    losses.sum().backward()
    trained = [
        parameter for name, parameter in detector.named_parameters() if not name.startswith(("trunk", "pyramid"))
    ]
    assert all(parameter.grad is not None for parameter in trained)
    return losses.detach(), [parameter.grad.clone() for parameter in trained if parameter.grad is not None]


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_training_in_every_order(few_samples: None, images: int, sampling_ratio: int) -> None:
    free, fixed = (detector_of(sampling_ratio, fixed_size=fixed_size).train() for fixed_size in (False, True))
    in_any_order: dict[frozenset[str], Tensor] = {}
    for order in permutations(CONTENTS, images):
        expected, wanted = losses_and_gradients(free, order)
        losses, gradients = losses_and_gradients(fixed, order)
        torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4, msg=f"{order}")
        for one, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=f"{order}")
        # The images draw and learn the same whichever stands first.
        first = in_any_order.setdefault(frozenset(order), losses)
        torch.testing.assert_close(losses, first, atol=1e-5, rtol=1e-4, msg=f"{order}")
    if images == 4:
        assert (first > 0).all()


def test_a_region_that_fills_up_has_no_mask_to_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[Tensor] = []
    counted: list[Tensor] = []
    align, loss = torchvision.ops.roi_align, mask_loss

    def watched_align(maps: Tensor, rois: Tensor, *rest: object) -> Tensor:
        if maps.shape[1:] == (1, 112, 112):
            sampled.append(rois[:, 1:])
        return align(maps, rois, *rest)

    def watched_loss(output: Tensor, wanted: Tensor, real: Tensor) -> LossSum:
        counted.append(real)
        return loss(output, wanted, real)

    monkeypatch.setattr(torchvision.ops, "roi_align", watched_align)
    monkeypatch.setattr(parts, "mask_loss", watched_loss)
    detector = detector_of(2, fixed_size=True).train()
    for images in (1, 2, 4):
        for order in permutations(CONTENTS, images):
            detector(images_of(order), targets_of(order))
            real, regions = counted[-1], sampled[-1]
            assert real.any() == ("some" in order or "tiny" in order)
            # A negative is related to some object of its image, often far away or much smaller. It stands for none: the
            # unit box on the unit box, that is, all of the mask's grid.
            assert (regions[~real] == torch.tensor([0.0, 0.0, 112.0, 112.0])).all(), order
            assert len(order) < 4 or not real.all()
    assert len(sampled) == len(counted) == 40


def proposals_of(counts: tuple[int, ...]) -> Proposals:
    """For each image so many boxes, always the same for the same number."""
    found = []
    for count in counts:
        generator = torch.Generator().manual_seed(count)
        corners = torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 40.0])
        boxes = torch.cat((corners, corners + 2 + torch.rand(count, 2, generator=generator) * 22), dim=1)
        found.append(ImageProposals(boxes, torch.rand(count, generator=generator), SIZE))
    return pad_proposals(found)


def assert_fillers(found: Detections) -> None:
    empty = ~found.valid
    assert (found.boxes[empty] == torch.tensor([0.0, 0.0, 1.0, 1.0])).all()
    for values in (found.scores, found.labels, found.masks, found.keypoints):
        assert values is not None
        assert not values[empty].any()


@pytest.mark.parametrize("in_views", [False, True])
@pytest.mark.parametrize("on_proposals", [False, True])
def test_detection_in_every_order(few_samples: None, on_proposals: bool, in_views: bool) -> None:
    free, fixed = (
        detector_of(0, fixed_size=fixed_size, on_proposals=on_proposals and not in_views).eval().requires_grad_(False)
        for fixed_size in (False, True)
    )
    rule = MergeRule(nms_overlap=0.5, max_detections=12, mirrored_keypoints=(1, 0))

    def found_in(detector: Detector, order: tuple[str, ...], counts: tuple[int, ...]) -> Detections:
        images, proposals = images_of(order), proposals_of(counts)
        if not in_views:
            return detector.detect(images, proposals)
        return detect_in_views(detector, [View(images), View(mirrored(images), flipped=True)], rule, proposals)

    number = dict(zip(CONTENTS, (0, 1, 5, 30), strict=True))
    alone = {content: found_in(free, (content,), (number[content],)) for content in CONTENTS}
    counts = [int(alone[content].count) for content in CONTENTS]
    assert 0 == counts[0] < counts[1] < counts[3]
    for images in (1, 2, 4):
        for order in permutations(CONTENTS, images):
            found = found_in(fixed, order, tuple(number[content] for content in order))
            assert_fillers(found)
            for place, content in enumerate(order):
                count, expected = int(found.count[place]), alone[content]
                assert count == int(expected.count), order
                for name, tolerance in (("boxes", 1e-3), ("scores", 1e-5), ("masks", 1e-4), ("keypoints", 1e-2)):
                    one, other = getattr(found, name)[place, :count], getattr(expected, name)[0, :count]
                    torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-4, msg=f"{order} {name}")


def with_area(boxes: Tensor | None) -> bool:
    assert boxes is not None
    assert boxes.numel() > 0
    return bool((boxes[..., 2:] > boxes[..., :2]).all())


def test_no_slot_holds_a_box_without_area() -> None:
    order = ("none", "crowd", "some")
    targets, proposals = targets_of(order), proposals_of((0, 3, 1))
    assert with_area(targets.boxes)
    assert with_area(targets.mask_boxes)
    padded = with_a_slot(targets_of(("none", "none")))
    assert with_area(padded.boxes)
    assert with_area(padded.mask_boxes)
    assert not padded.valid.any()
    assert not padded.crowd.any()
    assert with_area(proposals.boxes)
    detector = detector_of(2, fixed_size=True, on_proposals=True).eval().requires_grad_(False)
    found = detector.detect(images_of(order), proposals)
    assert with_area(found.boxes)
    assert with_area(found.mask_boxes)
    dense = detector.dense
    assert dense is not None
    rules = replace(dense.rules, test=replace(dense.rules.test, min_score=1.0))  # nothing is proposed
    silent = Detector(detector.trunk, detector.pyramid, dense.with_rules(rules), detector.regions)
    nothing = with_levels(silent, fixed_size=True).propose(images_of(order))
    assert nothing.count.tolist() == [0, 0, 0]
    assert with_area(nothing.boxes)
    assert with_area(merge_detections([found, found], MergeRule(0.5, 40), fixed_size=True).boxes)


def test_the_unit_box_in_place_of_what_is_not_real() -> None:
    boxes = torch.tensor([[3.0, 4, 9, 8], [torch.nan, 0, torch.inf, 0]])
    assert real_or_unit(boxes, torch.tensor([True, False])).tolist() == [[3, 4, 9, 8], [0, 0, 1, 1]]
