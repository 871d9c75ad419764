"""A batch has the same losses and gradients however it is shared: by 1, 2 or 3 workers, each of which pads its own
share and computes it in 1, 2 or 4 pieces; images with few and many proposals, of an RPN, of a file, with and without
the objects themselves."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.data.proposals import ImageProposals, pad_proposals
from maskrcnn_core.data.targets import pad_targets
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.dense import losses as dense_losses
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.matching import Samples, sample
from maskrcnn_core.model.regions import sampling
from maskrcnn_core.model.regions.sampling import sample_regions
from maskrcnn_core.structures import ImageBatch, Proposals, Targets, with_a_slot
from maskrcnn_core.training.accumulation import accumulate_gradients
from tests.core.model.test_detector import CONFIG
from tests.core.model.test_fillers import SIZE, image_targets, with_levels

# What is in each image of the batch, and how many proposals a file has for it.
CONTENTS = ("some", "none", "some", "tiny", "crowd")
COUNTS = (12, 150, 400, 3, 0)
SOURCES = ("rpn", "file", "both", "beside")

each_size = pytest.mark.parametrize("fixed_size", [False, True])

Share = tuple[ImageBatch, Targets, Proposals | None]


def detector_of(source: str, *, fixed_size: bool) -> Detector:
    """`both`: the file's and the objects themselves; `beside`: the same, and an RPN learns too."""
    config = replace(
        CONFIG,
        dense=replace(CONFIG.dense, enabled=source in ("rpn", "beside")),
        regions=RegionsConfig(batch_size=32, add_ground_truth=source != "file"),
    )
    assert isinstance(config, ModelConfig)
    assert isinstance(config.dense, DenseConfig)
    torch.manual_seed(0)
    return with_levels(build_detector(config, load_pretrained=False), fixed_size=fixed_size).train()


def file_proposals(place: int) -> ImageProposals:
    """Most of them on the objects of the image, so that there are more positives than are drawn."""
    generator = torch.Generator().manual_seed(place)
    count, boxes = COUNTS[place], image_targets(CONTENTS[place]).boxes
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 40.0])
    far = torch.cat((corners, corners + 4 + torch.rand(count, 2, generator=generator) * 20), dim=1)
    if len(boxes):
        near = boxes[torch.arange(count) % len(boxes)] + torch.randn(count, 4, generator=generator)
        far = torch.where((torch.arange(count) % 4 < 3)[:, None], near, far)
    low, high = far[:, :2].clamp(min=0), far[:, 2:].minimum(torch.tensor([96.0, 64.0]))
    return ImageProposals(
        torch.cat((low, high.maximum(low + 0.1)), dim=1), torch.rand(count, generator=generator), SIZE
    )


def share_of(places: Sequence[int], source: str) -> Share:
    """As a worker makes its share of the batch: padded to its own longest."""
    pixels = torch.stack([torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(p)) for p in places])
    sizes = torch.tensor([SIZE] * len(places))
    targets = pad_targets([image_targets(CONTENTS[place]) for place in places])
    targets = replace(targets, keypoints=None, seeds=torch.tensor([40 + place for place in places]))
    proposals = None if source == "rpn" else pad_proposals([file_proposals(place) for place in places])
    return ImageBatch(pixels, sizes, sizes), targets, proposals


def gradients_of(detector: Detector, shares: Sequence[Share], pieces: int) -> tuple[dict[str, float], list[Tensor]]:
    """Losses and gradients, averaged over the workers as data-parallel training does."""
    asked: list[Tensor] = []

    def noted(counts: Tensor) -> Tensor:
        asked.append(counts)
        return counts.clamp(min=1)

    for share in shares:
        accumulate_gradients(detector, *share, pieces=pieces, count=noted)
    assert len(asked) == len(shares)
    joint = torch.stack(asked).sum(dim=0).clamp(min=1) / len(shares)
    detector.zero_grad()
    losses: dict[str, float] = {}
    for share in shares:
        for name, value in accumulate_gradients(detector, *share, pieces=pieces, count=lambda _: joint).items():
            losses[name] = losses.get(name, 0.0) + float(value) / len(shares)
    return losses, [p.grad / len(shares) for p in detector.parameters() if p.grad is not None]


@each_size
@pytest.mark.parametrize("source", SOURCES)
def test_any_number_of_workers_and_pieces(source: str, fixed_size: bool) -> None:
    detector = detector_of(source, fixed_size=fixed_size)
    expected, wanted = gradients_of(detector, [share_of(range(5), source)], 1)
    assert all(value > 0 for value in expected.values())
    scale = max(float(gradient.abs().max()) for gradient in wanted)
    for workers, pieces in ((1, 2), (1, 4), (2, 1), (2, 2), (3, 1)):
        ends = [worker * 5 // workers for worker in range(workers + 1)]
        shares = [share_of(range(ends[w], ends[w + 1]), source) for w in range(workers)]
        losses, gradients = gradients_of(detector, shares, pieces)
        assert losses == pytest.approx(expected, rel=1e-5, abs=1e-6), (workers, pieces)
        for one, other in zip(gradients, wanted, strict=True):
            assert (one - other).abs().max() <= 1e-5 * scale, (workers, pieces)


@each_size
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_drawn_of_an_image_is_its_own(source: str, fixed_size: bool) -> None:
    detector = detector_of(source, fixed_size=fixed_size)
    regions = detector.regions
    assert regions is not None

    def drawn(places: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        images, targets, proposals = share_of(places, source)
        if proposals is None:
            proposals = detector.propose(images)
        samples = sample_regions(
            proposals, with_a_slot(targets), regions.num_classes, regions.sampling, fixed_size=fixed_size
        )
        found = {}
        for row, place in enumerate(places):
            positive, real = samples.positive[row], samples.valid[row]
            found[place] = samples.boxes[row, positive], samples.boxes[row, real & ~positive]
        return found

    together = drawn(range(5))
    for places in ((0,), (1,), (2,), (3,), (4,), (4, 3), (2, 0, 1), (3, 1)):
        for place, found in drawn(places).items():
            torch.testing.assert_close(found, together[place], msg=f"{place} of {places}")
    # The images differ as the fault needs it: one reaches the limit of positives, one has fewer candidates than that.
    if source != "rpn":
        assert max(len(positives) for positives, _ in together.values()) == 8
        assert len(together[3][0]) + len(together[3][1]) < 8


def test_the_anchors_and_the_regions_of_an_image_are_drawn_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(kinds: Tensor, number: int, fraction: float, seeds: Tensor | None = None) -> Samples:
        assert seeds is not None
        seen.append(seeds)
        return sample(kinds, number, fraction, seeds)

    monkeypatch.setattr(dense_losses, "sample", watched)
    monkeypatch.setattr(sampling, "sample", watched)
    images, targets, _ = share_of(range(3), "rpn")
    detector_of("rpn", fixed_size=False)(images, targets)
    anchors, regions = seen
    assert len(set(anchors.tolist()) | set(regions.tolist())) == 6
