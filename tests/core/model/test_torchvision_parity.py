"""torchvision's maskrcnn_resnet50_fpn and ours with its weights, side by side, from picture to masks and losses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.targets import pad_targets, targets_from_dense
from maskrcnn_core.data.transform import resized_size
from maskrcnn_core.inference.encoding import image_record
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import ImageBatch
from tests.core.model.torchvision_reference import as_batch, imported, pictures, reference_model

SHORT, LONG = 320, 533


@pytest.fixture(scope="module", autouse=True)
def both_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference() -> MaskRCNN:
    return reference_model(SHORT, LONG)


@pytest.fixture(scope="module")
def ours(reference: MaskRCNN) -> tuple[ModelConfig, Detector]:
    config, detector = imported(reference)
    return replace(config, input=replace(config.input, short_side=SHORT, long_side=LONG)), detector


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    shared = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
    return pictures(shared, tmp_path_factory.mktemp("pictures") / "set", 3)


def batch_of(config: ModelConfig, images: list[Tensor]) -> ImageBatch:
    sizes = [resized_size(image.shape[-2], image.shape[-1], SHORT, LONG) for image in images]
    return as_batch(config, images, sizes)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def test_trunk_and_rpn_outputs(reference: MaskRCNN, ours: tuple[ModelConfig, Detector], images: list[Tensor]) -> None:
    config, detector = ours
    for image in images:
        batch = batch_of(config, [image])
        theirs, _ = reference.transform([image.float() / 255])
        assert theirs.tensors.shape == batch.pixels.shape
        assert (theirs.tensors - batch.pixels).abs().max() < 1e-5
        their_pyramid = list(reference.backbone(theirs.tensors).values())
        their_logits, their_deltas = reference.rpn.head(their_pyramid)
        pyramid = detector.features(batch).maps
        assert detector.dense is not None
        outputs = detector.dense.head(pyramid)
        for got, expected in zip(pyramid, their_pyramid, strict=True):
            assert relative_error(got, expected) < 1e-4
        for got, expected in zip(outputs.logits, their_logits, strict=True):
            assert relative_error(got[..., 0], expected.permute(0, 2, 3, 1).flatten(1)) < 1e-4
        for got, expected in zip(outputs.deltas, their_deltas, strict=True):
            expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 4)
            assert relative_error(got, expected) < 1e-4


@torch.no_grad()
def test_detections_and_masks(reference: MaskRCNN, ours: tuple[ModelConfig, Detector], images: list[Tensor]) -> None:
    config, _ = ours
    predictor = Predictor(imported(reference)[1], config)
    for image in images:
        expected = reference([image.float() / 255])[0]
        found = predictor.detect(batch_of(config, [image]))
        count = int(found.count[0])
        assert count == len(expected["scores"]) == 100
        # Two whose scores differ by less than a rounding may change places, and the hundredth with the next, cut off.
        certain = expected["scores"] > expected["scores"][-1] + 1e-5
        assert certain.sum() >= 95
        distance = (found.boxes[0][:, None] - expected["boxes"][certain]).abs().amax(dim=2)
        distance[(found.labels[0] + 1)[:, None] != expected["labels"][certain]] = torch.inf
        partner = distance.argmin(dim=0)
        assert len(partner.unique()) == len(partner)
        assert distance.amin(dim=0).max() < 0.05
        assert (found.scores[0][partner] - expected["scores"][certain]).abs().max() < 1e-4
        assert expected["scores"].min() > 0.05
        height, width = image.shape[-2:]
        record = image_record(found, 0, (height, width), predictor.config)
        pairs = zip([record.detections[place] for place in partner], expected["masks"][certain, 0], strict=True)
        for detection, soft in pairs:
            theirs = pycocotools.mask.encode(np.asfortranarray((soft > 0.5).numpy().astype(np.uint8)))
            got = {"size": [height, width], "counts": detection.rle_counts}
            assert pycocotools.mask.iou([got], [theirs], [0])[0, 0] >= 0.99 or pycocotools.mask.area(theirs) == 0


def test_losses_when_everything_is_sampled(images: list[Tensor]) -> None:
    everything = 10**6
    reference = reference_model(
        SHORT, LONG, rpn_batch_size_per_image=everything, box_batch_size_per_image=everything
    ).train()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    config, detector = imported(reference, batch_size=everything, positive_fraction=1.0)
    # pictures of the size that the network sees, so that neither side resamples a mask
    image = torch.nn.functional.interpolate(images[0][None].float(), size=(320, 480))[0].to(torch.uint8)
    masks = torch.zeros(3, 320, 480, dtype=torch.uint8)
    masks[0, 40:200, 60:300] = 1
    masks[0, 90:120, 100:200] = 0
    masks[1, 150:320, 250:480] = 1
    masks[1, 150:200, 250:300] = 0
    masks[2, 10:60, 400:440] = 1
    boxes = torch.tensor([[60.0, 40, 300, 200], [250, 150, 480, 320], [400, 10, 440, 60]])
    labels = torch.tensor([5, 18, 90])
    with torch.no_grad():
        expected = reference([image.float() / 255], [{"boxes": boxes, "labels": labels, "masks": masks}])
        targets = pad_targets([targets_from_dense(boxes, labels - 1, masks)])
        got = detector.train()(as_batch(config, [image], [(320, 480)]), targets)
    pairs = {
        "loss_objectness": "rpn_objectness",
        "loss_rpn_box_reg": "rpn_box",
        "loss_classifier": "roi_class",
        "loss_box_reg": "roi_box",
        "loss_mask": "roi_mask",
    }
    assert set(expected) == set(pairs)
    assert set(got) == set(pairs.values())
    for theirs, name in pairs.items():
        assert float(expected[theirs]) > 1e-4, f"{theirs} is too small to say anything"
        assert float(got[name]) == pytest.approx(float(expected[theirs]), rel=1e-4), name


@torch.no_grad()
def test_batch_of_equal_sizes_is_one_by_one(ours: tuple[ModelConfig, Detector], images: list[Tensor]) -> None:
    config, detector = ours
    equal = [torch.nn.functional.interpolate(i[None].float(), size=(320, 448))[0].to(torch.uint8) for i in images]
    together = detector.detect(batch_of(config, equal))
    for index, image in enumerate(equal):
        alone = detector.detect(batch_of(config, [image]))
        count = int(alone.count[0])
        assert int(together.count[index]) == count
        assert together.labels[index, :count].tolist() == alone.labels[0].tolist()
        torch.testing.assert_close(together.boxes[index, :count], alone.boxes[0], atol=0.05, rtol=0)
        torch.testing.assert_close(together.scores[index, :count], alone.scores[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.masks[index, :count], alone.masks[0], atol=1e-3, rtol=0)


@torch.no_grad()
def test_mixed_sizes_in_a_batch_are_torchvisions(
    reference: MaskRCNN, ours: tuple[ModelConfig, Detector], images: list[Tensor]
) -> None:
    config, _ = ours
    mixed = [images[0], images[2].transpose(1, 2)[:, :200].contiguous()]
    expected = reference([image.float() / 255 for image in mixed])
    found = Predictor(imported(reference)[1], config).detect(batch_of(config, mixed))
    for index, theirs in enumerate(expected):
        count = int(found.count[index])
        assert count == len(theirs["scores"])
        assert (found.labels[index, :count] + 1).tolist() == theirs["labels"].tolist()
        assert (found.boxes[index, :count] - theirs["boxes"]).abs().max() < 0.05
        assert (found.scores[index, :count] - theirs["scores"]).abs().max() < 1e-4
