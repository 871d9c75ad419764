"""Checkpoint folders: what is written is what is read, and damage is told by the name of the file."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.weights.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from maskrcnn_core.weights.checkpoint_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    config_from_dict,
    config_to_dict,
    load_config,
)

CONFIG = ModelConfig(
    backbone=BackboneConfig(name="timm:resnet10t", pretrained=False, frozen_stages=0),
    dense=DenseConfig(anchors=AnchorConfig(sizes=(1.0, 2.0, 3.0, 4.0, 5.5), ratios=(1.0,))),
    box_head=BoxHeadConfig(delta_weights=(1.0, 2.0, 3.0, 4.0), min_score=0.125),
    categories=(Category(7, "Zelle"), Category(2, 'größer, "quoted"')),
)


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(40, 30, generator=generator),
        "a.transposed": torch.randn(3, 4, generator=generator).t(),
        "b.half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(3),
        "none": torch.zeros(0, 4),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run" / "best", state(), CONFIG)
    return tmp_path / "run" / "best"


def change_document(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(document | changes))


def test_round_trip(folder: Path) -> None:
    config, loaded = load_checkpoint(folder)
    assert config == CONFIG
    assert load_config(str(folder)) == CONFIG
    assert set(loaded) == set(state())
    for name, tensor in state().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_only_the_two_files_are_left(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == [CONFIG_NAME, WEIGHTS_NAME]


def test_a_failed_write_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(folder)

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("maskrcnn_core.weights.checkpoint.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, {"a.weight": torch.zeros(1)}, CONFIG)
    monkeypatch.undo()
    assert fingerprint(folder) == before
    assert sorted(os.listdir(folder)) == [CONFIG_NAME, WEIGHTS_NAME]


def test_the_configuration_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[str] = []
    move = os.replace

    def watched(old: str, new: str) -> None:
        placed.append(Path(new).name)
        move(old, new)

    monkeypatch.setattr("maskrcnn_core.weights.checkpoint.os.replace", watched)
    save_checkpoint(tmp_path, state(), CONFIG)
    assert placed == [WEIGHTS_NAME, CONFIG_NAME]


def test_fingerprint_changes_with_weights_and_settings_only(folder: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "same", state(), CONFIG)
    assert fingerprint(tmp_path / "same") == fingerprint(folder)
    other = state()
    other["a.weight"][3, 4] += 1e-3
    save_checkpoint(tmp_path / "weights", other, CONFIG)
    save_checkpoint(tmp_path / "settings", state(), replace(CONFIG, box_head=BoxHeadConfig(min_score=0.25)))
    assert len({fingerprint(tmp_path / name) for name in ("same", "weights", "settings")}) == 3
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS_NAME):
        fingerprint(folder)


@pytest.mark.parametrize("config", [ModelConfig(), CONFIG], ids=["defaults", "changed"])
def test_configuration_round_trip(config: ModelConfig) -> None:
    document = config_to_dict(config)
    assert config_from_dict(ModelConfig, json.loads(json.dumps(document)), "model") == config


def test_absent_settings_take_their_defaults_and_whole_numbers_become_floats() -> None:
    config = config_from_dict(ModelConfig, {"regions": {"canonical_size": 112}}, "model")
    assert config == replace(ModelConfig(), regions=replace(ModelConfig().regions, canonical_size=112.0))
    assert isinstance(config.regions.canonical_size, float)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"regions": {"alined": True}}, r"model\.regions\.alined is not a setting"),
        ({"regions": {"aligned": 1}}, r"model\.regions\.aligned: got 1, expected bool"),
        ({"regions": {"batch_size": True}}, r"model\.regions\.batch_size: got True, expected int"),
        ({"regions": {"batch_size": 1.5}}, r"model\.regions\.batch_size: got 1\.5, expected int"),
        ({"regions": []}, r"model\.regions: got list, expected a mapping"),
        ({"input": {"channels": "hsv"}}, r"model\.input\.channels: got 'hsv', expected one of rgb, bgr"),
        ({"input": {"mean": [1, 2]}}, r"model\.input\.mean: got 2 values, expected 3"),
        ({"dense": {"anchors": {"ratios": 1.0}}}, r"model\.dense\.anchors\.ratios: got 1\.0, expected a list"),
        ({"categories": [{"id": "1", "name": "x"}]}, r"model\.categories\[0\]\.id: got '1', expected int"),
        ({"box_head": {"min_score": 2.0}}, r"model\.box_head\.min_score: got 2\.0, expected a number from 0 to 1"),
    ],
)
def test_wrong_settings_are_named(document: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict(ModelConfig, document, "model")
    change_document(folder, model=document)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        load_checkpoint(folder)


def test_a_category_without_its_name(folder: Path) -> None:
    change_document(folder, model={"categories": [{"id": 1}]})
    with pytest.raises(CheckpointError, match=r"config\.json: model\.categories\[0\]\.name is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize("version", [0, 3, "1", "2", None])
def test_another_version(version: object, folder: Path) -> None:
    change_document(folder, format_version=version)
    with pytest.raises(CheckpointError, match=rf"config\.json: got format_version {version!r}, expected 2, or 1"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["[]", "3", '"model"'])
def test_json_of_another_kind(text: str, folder: Path) -> None:
    (folder / CONFIG_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: got format_version None"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_files_cut_short_are_named(name: str, share: float, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=rf"{name}: not .*cut short"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_missing_files_are_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder_points_to_convert(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"model\.pth: is a file, .* python -m jobs\.convert --source \S*model\.pth"
    ):
        load_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("place", [100, -1])
def test_a_flipped_bit_in_the_weights_is_noticed(place: int, folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_NAME).read_bytes())
    content[place if place < 0 else len(content) - place] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: other content than when it was written"):
        load_checkpoint(folder)


def test_folders_without_a_digest_load(folder: Path) -> None:
    document = json.loads((folder / CONFIG_NAME).read_text())
    del document["weights_sha256"]
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    assert load_checkpoint(folder)[0] == CONFIG


@pytest.mark.parametrize("digest", [3, "", "x" * 64, ["a"], {}])
def test_a_digest_that_is_none(digest: object, folder: Path) -> None:
    change_document(folder, weights_sha256=digest)
    with pytest.raises(CheckpointError, match=r"config\.json: weights_sha256: got"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_that_are_no_numbers(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    bad = torch.zeros(4, 5, dtype=dtype)
    bad[1, 2] = value
    save_checkpoint(tmp_path, state() | {"bad.weight": bad}, CONFIG)
    with pytest.raises(CheckpointError, match=r"safetensors: bad\.weight holds 1 values of 20 that are no finite"):
        load_checkpoint(tmp_path)


def test_a_sum_beyond_the_largest_number_is_no_fault(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"large": torch.full((4,), 3e38), "half": torch.full((9,), 6e4).half()}, CONFIG)
    assert set(load_checkpoint(tmp_path)[1]) == {"large", "half"}


NUMBER = "9" * 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply|not JSON"),
        ('{"format_version": 1, "model": ' + '{"a":' * 200_000, "nested too deeply|not JSON"),
        ('{"format_version": 1}', "model is missing"),
        ('{"format_version": 1, "model": null}', "model: got NoneType, expected a mapping"),
        (
            '{"format_version": 1, "model": {"input": {"mean": [NaN, 0, 0]}}}',
            r"mean: got nan, expected a finite number",
        ),
        ('{"format_version": 1, "model": {"input": {"std": [1, 0, 1]}}}', r"model\.input\.std: got"),
        ('{"format_version": 1, "model": {"input": {"std": [1, Infinity, 1]}}}', r"std: got inf"),
        ('{"format_version": 1, "model": {"input": {"mean": [1e999, 0, 0]}}}', r"mean: got inf"),
        ('{"format_version": 1, "model": {"input": {"mean": [1' + "0" * 400 + ", 0, 0]}}}", r"a number of \d+ bits"),
        ('{"format_version": 1, "model": {"pyramid": {"channels": ' + NUMBER + "}}}", "not JSON"),
        ('{"format_version": 1.0, "model": {}}', r"got format_version [12]\.0"),
        ('{"format_version": true, "model": {}}', "got format_version True"),
        ('{"format_version": 1, "model": {"\\u001b[2J": 1}}', r"model\.\\x1b\[2J is not a setting"),
        (
            '{"format_version": 1, "model": {"input": {"channels": ["rgb"]}}}',
            "channels: got a list of 1, expected one of",
        ),
        ("\udcff", "not JSON"),
        (" " * (1 << 24) + "{}", "over 16,777,216 bytes"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_documents_that_are_none(text: str, message: str, version: int, folder: Path) -> None:
    text = text.replace('"format_version": 1', f'"format_version": {version}')
    (folder / CONFIG_NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*({message})") as caught:
        load_checkpoint(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_folder_in_place_of_the_document(folder: Path) -> None:
    (folder / CONFIG_NAME).unlink()
    (folder / CONFIG_NAME).mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "model",
    [
        {"pyramid": {"channels": 10**9}},
        {"box_head": {"channels": 10**8}},
        {"box_head": {"layers": 10**7}},
        {"box_head": {"conv_channels": 10**9}},
        {"dense": {"convs": 10**6}},
        {"mask_head": {"layers": 10**6}},
        {"keypoint_head": {"layers": 10**6}},
        {"keypoint_head": {"names": [str(i) for i in range(10**5)]}},
        {"regions": {"box_resolution": 10**6}},
        {"regions": {"mask_resolution": 10**6}},
        {"input": {"short_side": 10**6, "long_side": 10**6}},
        {"input": {"divisor": 32 * 10**6}},
        {"dense": {"anchors": {"sizes": [1.0] * 10**5, "every_level": True}}},
        {"dense": {"anchors": {"ratios": [1.0] * 10**5}}},
        {"categories": [{"id": i, "name": "x"} for i in range(100_001)]},
        {"box_head": {"max_detections": 10**12}},
        {"dense": {"pre_nms_test": 10**12}},
    ],
)
def test_sizes_beyond_all_networks_are_refused_at_once(model: dict[str, Any], folder: Path) -> None:
    change_document(folder, model=model)
    with pytest.raises(CheckpointError, match=r"config\.json: model\.\w+.*: got .*, expected") as caught:
        load_config(folder)
    assert len(str(caught.value)) < 1000
