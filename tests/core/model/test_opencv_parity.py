"""YOLOv2 and tiny YOLOv1 with random weights in Darknet's files give what OpenCV's importer of these files gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_core.boxes import suppress
from maskrcnn_core.importers.darknet import import_darknet
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.dense.dense_stage import DenseStage
from maskrcnn_core.model.dense.scores import level_scores
from maskrcnn_core.structures import DenseOutputs, ImageBatch, ImageFeatures
from tests.core.importers import darknet_networks

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
if not hasattr(cv2.dnn, "readNetFromDarknet"):
    pytest.skip("OpenCV 5 has no importer of Darknet", allow_module_level=True)

_SUPPRESSED = 0.4  # IoU from which OpenCV's region layer sets scores to 0


def image(side: int) -> np.ndarray:
    return np.random.default_rng(1).random((1, 3, side, side), np.float32)


def outputs_of(files: tuple[Path, Path], side: int) -> tuple[DenseStage, ImageFeatures, DenseOutputs]:
    """Our dense stage with its features and outputs for one random image."""
    config, state = import_darknet(*files)
    assert config.input.short_side == side
    detector = build_detector(config, load_pretrained=False).eval()
    detector.load_state_dict(state)
    sizes = torch.tensor([[side, side]])
    with torch.no_grad():
        features = detector.features(ImageBatch(torch.from_numpy(image(side)), sizes, sizes))
        assert detector.dense is not None
        return detector.dense, features, detector.dense.head(features.maps)


def peers_outputs(files: tuple[Path, Path], side: int, number: int) -> list[Tensor]:
    """OpenCV's last outputs for the same image."""
    peer = cv2.dnn.readNetFromDarknet(*map(str, files))
    peer.setInput(image(side))
    return [torch.from_numpy(output) for output in peer.forward(peer.getLayerNames()[-number:])]


NETWORKS = {
    "voc": (darknet_networks.yolov2, 20, darknet_networks.VOC_ANCHORS),
    "coco": (darknet_networks.yolov2, 80, darknet_networks.COCO_ANCHORS),
    "tiny": (darknet_networks.tiny_yolov2, 20, darknet_networks.TINY_ANCHORS),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", [160, pytest.param(416, marks=pytest.mark.slow)])
def test_yolov2(name: str, side: int, tmp_path: Path) -> None:
    write, classes, anchors = NETWORKS[name]
    files = darknet_networks.write(tmp_path, write(classes, anchors, side))
    dense, features, outputs = outputs_of(files, side)
    raw, region = peers_outputs(files, side, 2)
    # What goes into the region layer, anchor by anchor.
    assert outputs.objectness is not None
    ours = torch.cat([outputs.deltas[0], outputs.objectness[0][..., None], outputs.logits[0]], dim=2)[0]
    theirs = raw.reshape(-1, 5 + classes)
    assert ours.std() > 0.05
    assert torch.allclose(ours, theirs, rtol=0, atol=5e-4)
    # Boxes as centre and sides in parts of the image; scores, of which OpenCV sets the suppressed to 0.
    boxes = dense.coding.decode(outputs.deltas[0], dense.grid(features)[0])[0] / side
    assert torch.allclose(as_centres(boxes), region[:, :4], rtol=1e-3, atol=1e-6)
    scores = level_scores(outputs, 0, "conditional")[0]
    kept = region[:, 5:] > 0
    assert kept.any()
    assert torch.allclose(scores[kept], region[:, 5:][kept], rtol=0, atol=1e-4)
    assert torch.equal(kept_by_suppression(boxes, scores), kept)


def kept_by_suppression(boxes: Tensor, scores: Tensor) -> Tensor:
    """[A, K]: what our own suppression leaves of each class."""
    columns = []
    for column in scores.T:
        keep = suppress(boxes[None], column[None], None, torch.ones_like(column)[None].bool(), _SUPPRESSED)
        columns.append(keep[0])
    return torch.stack(columns, dim=1)


def as_centres(boxes: Tensor) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat((boxes[:, :2] + sides / 2, sides), dim=1)


def test_tiny_yolov1(tmp_path: Path) -> None:
    """OpenCV doesn't know the last layer, so its description ends before it."""
    folder = tmp_path / "ours"
    folder.mkdir()
    ours = darknet_networks.write(folder, darknet_networks.tiny_yolov1())
    theirs = darknet_networks.write(tmp_path, darknet_networks.tiny_yolov1(with_detection=False))
    assert ours[1].read_bytes() == theirs[1].read_bytes()
    _, _, outputs = outputs_of(ours, 448)
    (expected,) = peers_outputs(theirs, 448, 1)
    # Class values of the cells, which both boxes of a cell share; confidences; boxes.
    classes = outputs.logits[0].unflatten(1, (49, 2))
    assert outputs.objectness is not None
    vector = torch.cat([classes[0, :, 0].flatten(), outputs.objectness[0][0], outputs.deltas[0][0].flatten()])
    assert vector.shape == (1470,)
    assert vector.std() > 0.05
    assert torch.equal(classes[:, :, 0], classes[:, :, 1])
    assert torch.allclose(vector, expected.flatten(), rtol=0, atol=1e-4)
