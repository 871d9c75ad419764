"""From torchvision's file to labels: what `jobs.convert` writes is loaded and compared with torchvision's answer."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from jobs.convert import main
from maskrcnn_core import load_detector
from maskrcnn_core.data.generated.pictures import generate_picture
from maskrcnn_core.inference.predictor import Predictor, describe_checkpoint
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import load_checkpoint
from tests.core.importers.darknet_networks import TINY_ANCHORS, tiny_yolov2, write
from tests.core.importers.synthetic_models import detectron2_state

NUM_CLASSES = 3
SIDE = 96


@pytest.fixture(scope="module")
def peer() -> MaskRCNN:
    """Random weights, with logits scaled so that there are confident detections."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    model = MaskRCNN(
        backbone, num_classes=NUM_CLASSES + 1, min_size=SIDE, max_size=2 * SIDE, rpn_post_nms_top_n_test=50
    )
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(8.0)
        model.rpn.head.bbox_pred.weight.mul_(5.0)
        model.roi_heads.box_predictor.cls_score.weight.mul_(30.0)
    return model.eval()


@pytest.fixture(scope="module")
def source(peer: MaskRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "peer.pth"
    torch.save({"model": peer.state_dict(), "epoch": 25}, path)  # as torchvision's training script saves it
    return path


def write_categories(folder: Path, *ids: int) -> str:
    categories = [{"id": number, "name": f"kind {number}"} for number in ids]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return str(path)


def test_the_converted_checkpoint_labels_as_torchvision_does(
    peer: MaskRCNN, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "checkpoint")
    names = write_categories(tmp_path, 18, 3, 7)
    assert main(["--source", str(source), "--output", output, "--annotations", names, "--norm_eps", "1e-5"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{source}: the weights are model; left out: epoch",
        f"checkpoint: {output} (resnet18, fpn, boxes, masks; 3 categories)",
        "next:",
        f"  python -m jobs.label --checkpoint {output} --images IMAGES --output LABELS",
    ]
    config, state = load_checkpoint(output)
    assert [(category.id, category.name) for category in config.categories] == [
        (3, "kind 3"),
        (7, "kind 7"),
        (18, "kind 18"),
    ]
    config = replace(
        config,
        input=replace(config.input, short_side=SIDE, long_side=2 * SIDE),
        dense=replace(config.dense, post_nms_test=50),
    )
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state)
    predictor = Predictor(detector, config, PredictorSettings(apply_exif=False))
    pixels = generate_picture(5, image_size=(SIDE, SIDE)).pixels
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    (ours,) = predictor.predict([image])
    with torch.inference_mode():
        theirs = peer([image.float() / 255])[0]
    assert len(ours.detections) == len(theirs["boxes"]) > 5
    expected_ids = [(3, 7, 18)[label - 1] for label in theirs["labels"].tolist()]
    assert [found.category_id for found in ours.detections] == expected_ids
    corners = theirs["boxes"]
    expected = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1)
    torch.testing.assert_close(torch.tensor([found.bbox for found in ours.detections]), expected, rtol=0, atol=0.01)
    scores = torch.tensor([found.score for found in ours.detections])
    torch.testing.assert_close(scores, theirs["scores"], rtol=0, atol=1e-4)


def test_without_names_the_classes_are_numbered(source: Path, tmp_path: Path) -> None:
    assert main(["--source", str(source), "--output", str(tmp_path / "checkpoint")]) == 0
    _, categories = describe_checkpoint(str(tmp_path / "checkpoint"))
    assert [(category.id, category.name) for category in categories] == [(1, "class 1"), (2, "class 2"), (3, "class 3")]


def test_darknets_weights_with_their_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, weights = write(tmp_path, tiny_yolov2(2, TINY_ANCHORS, 64))
    names = write_categories(tmp_path, 3, 7)
    output = str(tmp_path / "checkpoint")
    assert main(["--source", str(weights), "--output", output, "--annotations", names]) == 0
    assert "(darknet_tiny, last, boxes; 2 categories)" in capsys.readouterr().out
    detector = load_detector(output, device="cpu")
    record = detector(np.array(generate_picture(5, image_size=(64, 90)).pixels)).record
    assert record.status == "ok"
    assert {found.category_id for found in record.detections} <= {3, 7}
    moved = cfg.rename(tmp_path / "other.cfg")
    arguments = ["--source", str(weights), "--output", str(tmp_path / "second"), "--source_config", str(moved)]
    assert main(arguments) == 0
    capsys.readouterr()
    line = refused(["--source", str(weights)], tmp_path / "third", capsys)
    assert "give its description: --source_config FILE.cfg" in line
    line = refused(["--source", str(weights), "--source_config", "nowhere.cfg"], tmp_path / "third", capsys)
    assert "nowhere.cfg: no such file" in line


def refused(arguments: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; nothing was written."""
    assert main([*arguments, "--output", str(output)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not output.exists()
    return err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file, expected a .pth or .pkl file"),
        (b"", "copy it again"),
        (b"PK\x03\x04 and then nothing", "copy it again"),
        (b"not a torch file", "refused, it is no torch file"),
    ],
)
def test_a_file_that_is_no_checkpoint(
    content: bytes | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "peer.pth"
    if content is not None:
        path.write_bytes(content)
    line = refused(["--source", str(path)], tmp_path / "checkpoint", capsys)
    assert f"{path}: " in line
    assert expected in line


def test_a_checkpoint_cut_in_half(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.pth"
    content = source.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    line = refused(["--source", str(path)], tmp_path / "checkpoint", capsys)
    assert f"{path}: not readable as a torch file" in line
    assert "it is damaged or cut short: copy it again" in line


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "keys such as fc.bias, fc.weight are of no known"),
        ({"model": {"fc.weight": 3}}, "got dict, expected a state dict of tensors"),
        ([torch.zeros(1)], "got list, expected a state dict of tensors"),
        (torch.nn.ReLU(), "torch.save(model.state_dict(), FILE)"),
    ],
)
def test_a_torch_file_of_something_else(
    saved: object, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.pth"
    torch.save(saved, path)
    line = refused(["--source", str(path)], tmp_path / "checkpoint", capsys)
    assert f"{path}: " in line
    assert expected in line


def test_a_state_dict_with_a_missing_tensor(peer: MaskRCNN, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "peer.pth"
    state = {name: value for name, value in peer.state_dict().items() if name != "rpn.head.cls_logits.bias"}
    torch.save(state, path)
    line = refused(["--source", str(path)], tmp_path / "checkpoint", capsys)
    assert f"{path}: " in line
    assert "1 keys are missing (rpn.head.cls_logits.bias)" in line


def test_names_for_another_number_of_classes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = write_categories(tmp_path, 1, 2)
    line = refused(["--source", str(source), "--annotations", names], tmp_path / "checkpoint", capsys)
    assert f"{source}: " in line
    assert "it has 3 classes, got 2 categories" in line


def test_names_that_are_no_json(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.json").write_text("person, cat")
    arguments = ["--source", str(source), "--annotations", str(tmp_path / "names.json")]
    assert f"{tmp_path}/names.json: not JSON" in refused(arguments, tmp_path / "checkpoint", capsys)


@pytest.fixture(scope="module")
def zoo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as detectron2's model zoo has them."""
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    arrays = {key: value.numpy() for key, value in detectron2_state(num_classes=2, device="cpu").items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


def test_a_file_of_detectron2(zoo_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "checkpoint")
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
    assert main(["--source", str(zoo_file), "--output", output, "--source_config", name]) == 0
    assert f"checkpoint: {output} (resnet50, fpn, boxes, masks; 2 categories)" in capsys.readouterr().out
    config, _ = load_checkpoint(output)
    assert config.backbone.stride_in_1x1
    assert config.input.resize == "antialias"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x", "it says pyramid c4 (the keys: fpn)"),
        ("mask_rcnn", "source_config: got 'mask_rcnn', expected the name of"),
    ],
)
def test_a_source_config_that_does_not_fit(
    name: str, expected: str, zoo_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["--source", str(zoo_file), "--source_config", name], tmp_path / "checkpoint", capsys)
    assert expected in line


def test_a_malicious_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Malice:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": np.zeros(2), "other": [Malice()]}}))
    line = refused(["--source", str(path)], tmp_path / "checkpoint", capsys)
    assert "keys such as weight are of no known kind" in line
    assert "besides it holds model.other" in line
    assert os.listdir(tmp_path) == ["bad.pkl"]
