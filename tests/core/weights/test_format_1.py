"""Checkpoints whose settings and weights have the names of format 1."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.inference.predictor import load_predictor
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.trained import load_trained
from maskrcnn_core.training.optimizer import build_optimizer
from maskrcnn_core.training.state import TrainingState, load_learnt_weights, load_training_state, save_training_state
from maskrcnn_core.weights.checkpoint import file_digest, load_checkpoint, save_checkpoint, weight_shapes
from maskrcnn_core.weights.checkpoint_config import CONFIG_NAME, WEIGHTS_NAME, config_to_dict, load_config
from maskrcnn_core.weights.initial import load_initial_weights
from tests.core.inference.test_predictor import encoded
from tests.small_detector import FINDING, finding_detector

# As version 0.1.0 wrote it; the sections and settings that are not renamed are left to their defaults.
WRITTEN = """
{
  "format_version": 1,
  "model": {
    "backbone": {"name": "resnet18", "pretrained": false},
    "anchors": {
      "sizes": [8, 16, 32, 64, 128], "every_level": false, "ratios": [0.5, 1.0], "rounded": true, "fitted_strides": true
    },
    "rpn": {
      "enabled": true, "convs": 2, "positive_overlap": 0.6, "negative_overlap": 0.2, "batch_size": 32,
      "positive_fraction": 0.4, "pre_nms_train": 11, "pre_nms_test": 12, "post_nms_train": 13, "post_nms_test": 14,
      "nms_overlap": 0.65, "min_score": 0.01, "min_size": 2.0, "box_loss": "giou", "smooth_l1_beta": 0.5
    },
    "roi": {
      "positive_overlap": 0.55, "batch_size": 64, "positive_fraction": 0.3, "add_ground_truth": false,
      "crowd_overlap": 0.35, "transform": "warp", "reduction": "max", "box_resolution": 5, "mask_resolution": 10,
      "keypoint_resolution": 12, "sampling_ratio": 3, "aligned": false, "canonical_size": 112.0, "canonical_level": 3
    },
    "categories": [{"id": 4, "name": "cell"}]
  }
}
"""

NO_HEADS = replace(FINDING, box_head=BoxHeadConfig(enabled=False), mask_head=MaskHeadConfig(enabled=False))
KINDS = {
    "mask": FINDING,
    "mlp": replace(FINDING, mask_head=MaskHeadConfig(kind="mlp", channels=8, layers=1)),
    "faster": replace(FINDING, mask_head=MaskHeadConfig(enabled=False)),
    "fast": replace(FINDING, dense=replace(FINDING.dense, enabled=False)),
    "proposals": NO_HEADS,
    "convolutions": replace(
        FINDING,
        dense=replace(FINDING.dense, convs=2),
        box_head=replace(FINDING.box_head, convs=2, conv_channels=8, layers=1),
    ),
    "keypoints": replace(
        FINDING,
        keypoint_head=KeypointHeadConfig(enabled=True, names=("a", "b"), categories=("three",), channels=8, layers=2),
    ),
    "c4": replace(
        FINDING,
        backbone=BackboneConfig(name="resnet18", pretrained=False, frozen_stages=0),
        pyramid=PyramidConfig(kind="c4"),
        dense=replace(FINDING.dense, anchors=AnchorConfig(sizes=(16.0, 64.0), every_level=True)),
        box_head=replace(FINDING.box_head, layers=0),
    ),
}
OF_EACH_KIND = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)

OLD_WEIGHTS = {
    "dense.head.logits.": "rpn_head.objectness.",
    "dense.head.": "rpn_head.",
    "regions.trunk.": "region_stage.",
    "regions.box.head.": "box_head.",
    "regions.mask.head.": "mask_head.",
    "regions.keypoints.head.": "keypoint_head.",
}


def old_weight(name: str) -> str:
    for new, old in OLD_WEIGHTS.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    assert name.startswith(("trunk.", "pyramid.")), name
    return name


def old_settings(config: ModelConfig) -> dict[str, Any]:
    """The section `model` of format 1."""
    model = config_to_dict(config)
    dense, model["roi"] = model.pop("dense"), model.pop("regions")
    model["anchors"] = dense.pop("anchors")
    assert dense.pop("crowd_overlap") == model["roi"]["crowd_overlap"]
    model["rpn"] = dense
    return model


def write_document(folder: Path, **document: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps({"format_version": 1} | document))
    return folder


def save_in_format_1(folder: Path, state: dict[str, Tensor], config: ModelConfig) -> Path:
    """As `save_checkpoint` of version 0.1.0."""
    save_checkpoint(folder, {old_weight(name): value for name, value in state.items()}, config)
    return write_document(folder, model=old_settings(config), weights_sha256=file_digest(folder / WEIGHTS_NAME))


def state_of(config: ModelConfig) -> dict[str, Tensor]:
    return finding_detector(config).state_dict()


# ---- settings --------------------------------------------------------------------------------------------------------


def test_every_renamed_setting_is_read(tmp_path: Path) -> None:
    config = load_config(write_document(tmp_path, **json.loads(WRITTEN)))
    model = json.loads(WRITTEN)["model"]
    read = config_to_dict(config)
    later = config_to_dict(ModelConfig())  # with settings that came after format 1
    anchors = later["dense"]["anchors"] | model["anchors"]
    expected_dense = later["dense"] | model["rpn"] | {"anchors": anchors, "crowd_overlap": 0.35}
    assert read["dense"] == expected_dense
    assert read["regions"] == later["regions"] | model["roi"]
    assert config.dense.anchors.sizes == (8.0, 16.0, 32.0, 64.0, 128.0)
    assert config.dense.crowd_overlap == config.regions.crowd_overlap == 0.35


@OF_EACH_KIND
def test_settings_of_each_kind(config: ModelConfig, tmp_path: Path) -> None:
    document = old_settings(config)
    assert not {"dense", "regions"} & set(document)
    assert load_config(write_document(tmp_path, model=document)) == config


def test_absent_sections_take_their_defaults(tmp_path: Path) -> None:
    assert load_config(write_document(tmp_path, model={})) == ModelConfig()
    sizes = (1.0, 2.0, 3.0, 4.0, 5.0)
    alone = load_config(write_document(tmp_path, model={"anchors": {"sizes": sizes}}))
    assert alone == replace(
        ModelConfig(), dense=replace(ModelConfig().dense, anchors=replace(ModelConfig().dense.anchors, sizes=sizes))
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"rpn": {"convz": 1}}, r"model\.rpn\.convz is not a setting"),
        ({"roi": {"alined": True}}, r"model\.roi\.alined is not a setting"),
        ({"anchors": {"size": [1.0]}}, r"model\.anchors\.size is not a setting"),
        ({"anchor": {}}, r"model\.anchor is not a setting"),
        ({"dense": {}}, r"model\.dense is not a setting of format 1"),
        ({"regions": {"batch_size": 3}}, r"model\.regions is not a setting of format 1"),
        ({"rpn": {"anchors": {}}}, r"model\.rpn\.anchors is not a setting of format 1"),
        ({"rpn": {"crowd_overlap": 0.5}}, r"model\.rpn\.crowd_overlap is not a setting of format 1"),
        ({"rpn": {"convs": 1.5}}, r"model\.rpn\.convs: got 1\.5, expected int"),
        ({"rpn": {"negative_overlap": 0.9}}, r"model\.rpn\.negative_overlap: .* at most model\.rpn\.positive_overlap"),
        ({"anchors": {"sizes": [1.0]}}, r"model\.anchors\.sizes: .* or model\.anchors\.every_level true"),
        ({"roi": {"crowd_overlap": 2}}, r"model\.roi\.crowd_overlap: got 2\.0"),
        ({"rpn": []}, r"model\.rpn: got list, expected a mapping"),
        ({"anchors": []}, r"model\.anchors: got list, expected a mapping"),
        ({"roi": 3}, r"model\.roi: got int, expected a mapping"),
        ([], r"model: got list, expected a mapping"),
        (None, r"model: got NoneType, expected a mapping"),
    ],
)
def test_what_is_wrong_has_the_name_that_it_has_in_the_file(model: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        load_config(write_document(tmp_path, model=model))


@pytest.mark.parametrize("section", ["rpn", "roi", "anchors"])
def test_format_2_has_none_of_the_old_names(section: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: model\.{section} is not a setting"):
        load_config(write_document(tmp_path, format_version=2, model={section: {}}))


# ---- weights ---------------------------------------------------------------------------------------------------------


@OF_EACH_KIND
def test_weights_of_each_kind(config: ModelConfig, tmp_path: Path) -> None:
    state = state_of(config)
    save_in_format_1(tmp_path, state, config)
    read, weights = load_checkpoint(tmp_path)
    assert read == config
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], value) for name, value in state.items())
    assert weight_shapes(tmp_path) == {name: tuple(value.shape) for name, value in state.items()}
    loaded, detector = load_trained(str(tmp_path))
    assert loaded == config
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())


def test_names_of_format_2_are_left_alone(tmp_path: Path) -> None:
    """Also those that format 1 had a meaning for."""
    state = {"rpn_head.objectness.weight": torch.ones(2), "box_head.x": torch.ones(3)}
    save_checkpoint(tmp_path, state, FINDING)
    assert load_checkpoint(tmp_path)[1].keys() == state.keys()
    assert weight_shapes(tmp_path) == {"rpn_head.objectness.weight": (2,), "box_head.x": (3,)}


def test_damage_is_noticed(tmp_path: Path) -> None:
    save_in_format_1(tmp_path, state_of(FINDING), FINDING)
    content = bytearray((tmp_path / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: other content than when it was written"):
        load_checkpoint(tmp_path)


def test_labels_are_those_of_the_twin_in_format_2(tmp_path: Path) -> None:
    state = state_of(FINDING)
    save_in_format_1(tmp_path / "old", state, FINDING)
    save_checkpoint(tmp_path / "new", state, FINDING)
    images = [encoded(60, 90), encoded(150, 100, seed=1)]
    old, new = (load_predictor(str(tmp_path / name)).predict(images) for name in ("old", "new"))
    assert old == new
    assert min(len(record.detections) for record in old) > 0


def test_a_new_run_starts_from_one(tmp_path: Path) -> None:
    state = state_of(FINDING)
    save_in_format_1(tmp_path, state, FINDING)
    detector = build_detector(FINDING, load_pretrained=False)
    report = load_initial_weights(detector, FINDING, [tmp_path])
    assert report.fresh == report.unused == ()
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())


# ---- a run that goes on ----------------------------------------------------------------------------------------------


def optimizer_of(weights: torch.nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(
        weights, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, bias_decay=0.0, norm_decay=0.0, algorithm="sgd"
    )


def test_an_old_run_goes_on_with_its_learnt_weights(tmp_path: Path) -> None:
    detector = finding_detector(FINDING)
    state = {name: value + 1 for name, value in detector.state_dict().items()}
    learnt = {old_weight(name): value for name, value in state.items()}
    save_training_state(tmp_path, TrainingState(step=7), optimizer_of(detector), learnt)
    found = load_learnt_weights(tmp_path)
    assert found is not None
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    detector.load_state_dict(found)
    assert load_training_state(tmp_path, optimizer_of(detector)) == TrainingState(step=7)


@OF_EACH_KIND
def test_parameters_stand_in_the_order_that_an_old_optimizer_counted_them_in(config: ModelConfig) -> None:
    """An optimizer's state has places, no names: trunk, pyramid, dense stage, then the parts of the region stage."""
    parts = ("trunk", "pyramid", "rpn_head", "region_stage", "box_head", "mask_head", "keypoint_head")
    names = [old_weight(name) for name, _ in finding_detector(config).named_parameters()]
    places = [parts.index(name.split(".")[0]) for name in names]
    assert places == sorted(places)
    rpn = [name.split(".")[1] for name in names if name.startswith("rpn_head.")]
    assert list(dict.fromkeys(rpn)) == (["convs", "objectness", "deltas"] if config.dense.enabled else [])
