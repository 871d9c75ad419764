"""torchvision's other R-CNN models and ours with their weights, side by side: detections, masks, keypoints, losses."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pycocotools.mask
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.generated.pictures import generate_picture
from maskrcnn_core.data.targets import pad_targets, targets_from_dense
from maskrcnn_core.importers.torchvision import import_torchvision
from maskrcnn_core.inference.encoding import image_record
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import Targets
from tests.core.model.torchvision_reference import as_batch

HEIGHT, WIDTH = 192, 256
NUM_PROPOSALS = {"test": 200, "train": 60}
NUM_DETECTIONS = 20
EVERYTHING = 10**6
MODELS = (
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
)
LOSSES = {
    "loss_objectness": "rpn_objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "roi_class",
    "loss_box_reg": "roi_box",
    "loss_mask": "roi_mask",
    "loss_keypoint": "roi_keypoint",
}


@pytest.fixture(scope="module", autouse=True)
def both_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def peer_model(name: str, **settings: object) -> nn.Module:
    """Seeded random weights, lively norms, and logits scaled so that there are confident detections.

    MobileNet's proposals are few, since it drops those of low objectness.
    """
    torch.manual_seed(0)
    model: nn.Module = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        min_size=HEIGHT,
        max_size=WIDTH,
        rpn_post_nms_top_n_test=NUM_PROPOSALS["test"],
        rpn_post_nms_top_n_train=NUM_PROPOSALS["train"],
        box_detections_per_img=NUM_DETECTIONS,
        rpn_batch_size_per_image=EVERYTHING,
        box_batch_size_per_image=EVERYTHING,
        **settings,
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
        heads = model.roi_heads
        layers = [(model.rpn.head.cls_logits, 8.0), (model.rpn.head.bbox_pred, 5.0)]
        # MobileNet's features come out small with random weights.
        factor = 300.0 if "mobilenet" in name else 30.0
        layers += [(heads.box_predictor.cls_score, factor), (heads.box_predictor.bbox_pred, 5.0)]
        if heads.has_mask():
            layers.append((heads.mask_predictor.mask_fcn_logits, 5.0))
        if heads.has_keypoint():
            layers.append((heads.keypoint_predictor.kps_score_lowres, 10.0))
        for layer, factor in layers:
            layer.weight.mul_(factor)
        if "mobilenet" in name:
            model.rpn.head.cls_logits.bias.fill_(-3.0)  # a probability of 0.047
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def peer(request: pytest.FixtureRequest) -> nn.Module:
    return peer_model(request.param)


@pytest.fixture(scope="module")
def ours(peer: nn.Module) -> tuple[ModelConfig, Detector]:
    """Imported without a word about the model: the keys tell."""
    config, state = import_torchvision(peer.state_dict())
    config = replace(
        config,
        input=replace(config.input, short_side=HEIGHT, long_side=WIDTH),
        dense=replace(
            config.dense,
            post_nms_test=NUM_PROPOSALS["test"],
            post_nms_train=NUM_PROPOSALS["train"],
            batch_size=EVERYTHING,
            positive_fraction=1.0,
        ),
        regions=replace(config.regions, batch_size=EVERYTHING, positive_fraction=1.0),
        box_head=replace(config.box_head, max_detections=NUM_DETECTIONS),
    )
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state, strict=True)
    return config, detector.eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    """A picture of the size that the network sees."""
    pixels = generate_picture(4, image_size=(WIDTH, WIDTH)).pixels[:HEIGHT]
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


@torch.no_grad()
def test_detections(peer: nn.Module, ours: tuple[ModelConfig, Detector], image: Tensor) -> None:
    config, detector = ours
    expected = peer.eval()([image.float() / 255])[0]
    found = detector.eval().detect(as_batch(config, [image], [(HEIGHT, WIDTH)]))
    count = int(found.count[0])
    assert count == len(expected["scores"]) > 5
    if config.dense.anchors.every_level:
        assert 0 < int(detector.propose(as_batch(config, [image], [(HEIGHT, WIDTH)])).count[0]) < NUM_PROPOSALS["test"]
    assert (found.labels[0, :count] + 1).tolist() == expected["labels"].tolist()
    assert (found.scores[0, :count] - expected["scores"]).abs().max() < 1e-4
    assert (found.boxes[0, :count] - expected["boxes"]).abs().max() < 0.05
    record = image_record(found, 0, (HEIGHT, WIDTH), config)
    if "masks" in expected:
        for detected, soft in zip(record.detections, expected["masks"][:, 0], strict=True):
            theirs = pycocotools.mask.encode(np.asfortranarray((soft > 0.5).numpy().astype(np.uint8)))
            own = {"size": [HEIGHT, WIDTH], "counts": detected.rle_counts}
            assert pycocotools.mask.iou([own], [theirs], [0])[0, 0] >= 0.99 or pycocotools.mask.area(theirs) == 0
    if "keypoints" in expected:
        assert found.keypoints is not None
        places = found.keypoints[0, :count]
        assert (places[..., :2] - expected["keypoints"][..., :2]).abs().max() < 0.1
        for detected, theirs in zip(record.detections, expected["keypoints"], strict=True):
            assert detected.keypoints is not None
            in_record = torch.tensor(detected.keypoints).view(-1, 3)[:, :2]
            assert (in_record - theirs[:, :2]).abs().max() < 0.1
    assert ("masks" in expected) == config.mask_head.enabled
    assert ("keypoints" in expected) == config.keypoint_head.enabled


def objects(config: ModelConfig) -> tuple[dict[str, Tensor], Targets]:
    """Three objects, the last small; for torchvision and for us."""
    boxes = torch.tensor([[60.0, 30, 200, 150], [150, 60, 250, 190], [10, 10, 40, 60]])
    masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
        mask[y1 : y1 + 8, x1 : x1 + 8] = 0
    labels = torch.tensor([1, 1, 1] if len(config.categories) == 1 else [5, 18, 90])
    theirs = {"boxes": boxes, "labels": labels}
    targets = targets_from_dense(boxes, labels - 1, masks)
    if config.mask_head.enabled:
        theirs["masks"] = masks
    if config.keypoint_head.enabled:
        generator = torch.Generator().manual_seed(0)
        within = torch.rand(3, 17, 2, generator=generator) * (boxes[:, None, 2:] - boxes[:, None, :2])
        visible = (torch.rand(3, 17, 1, generator=generator) > 0.2).float() * 2
        keypoints = torch.cat((within + boxes[:, None, :2], visible), dim=2)
        theirs["keypoints"] = keypoints
        targets = replace(targets, keypoints=keypoints)
    return theirs, pad_targets([targets])


@torch.no_grad()
def test_losses_when_everything_is_sampled(peer: nn.Module, ours: tuple[ModelConfig, Detector], image: Tensor) -> None:
    config, detector = ours
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    theirs, targets = objects(config)
    expected = peer([image.float() / 255], [theirs])
    got = detector.train()(as_batch(config, [image], [(HEIGHT, WIDTH)]), targets)
    assert set(got) == {LOSSES[name] for name in expected}
    for name, value in expected.items():
        assert float(value) > 1e-4, f"{name} is too small to say anything"
        assert float(got[LOSSES[name]]) == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("maskrcnn_resnet50_fpn", 44_401_393), ("keypointrcnn_resnet50_fpn", 59_137_258)],
)
def test_parameter_counts_are_torchvisions(name: str, parameters: int) -> None:
    """torchvision's published counts, with frozen batch norms as constants; its boxes and masks have a background row,
    which we leave out: 4 boxes of 1024 weights and a bias, one mask of 256."""
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None)
    config, _ = import_torchvision(model.state_dict())
    with torch.device("meta"):
        detector = build_detector(config, load_pretrained=False)
    background = 4 * (1024 + 1) + (257 if config.mask_head.enabled else 0)
    assert sum(parameter.numel() for parameter in detector.parameters()) + background == parameters
