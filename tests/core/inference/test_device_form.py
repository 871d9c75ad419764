"""What settings leave to the device, and what a detector's inference form takes from its configuration."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference import device_form
from maskrcnn_core.inference.device_form import choices, prepared
from maskrcnn_core.inference.settings import PredictorSettings
from tests.small_detector import FINDING, finding_detector

DECIDED = ("prefetch", "device_masks", "device_preparation", "cuda_graphs")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Each device, whether this machine has it or not."""
    chosen = torch.device(request.param)
    monkeypatch.setattr(device_form, "usable_device", lambda name: chosen)
    return chosen


def test_what_is_left_open_follows_the_device(device: torch.device) -> None:
    found = choices(FINDING, PredictorSettings())
    assert found.device == device
    assert [getattr(found, name) for name in DECIDED] == [device.type == "cuda"] * 4


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("name", DECIDED)
def test_what_is_said_is_done(device: torch.device, name: str, wanted: bool) -> None:
    asked: dict[str, Any] = {name: wanted}
    found = choices(FINDING, PredictorSettings(**asked))
    recorded_on_a_cpu = name == "cuda_graphs" and device.type == "cpu"  # there is nothing to record
    assert getattr(found, name) == (wanted and not recorded_on_a_cpu)
    others = choices(FINDING, PredictorSettings())
    assert replace(found, **{name: getattr(others, name)}) == others


@pytest.mark.parametrize("wanted", [None, True])
def test_pillows_own_values_are_made_on_the_host(device: torch.device, wanted: bool | None) -> None:
    config = replace(FINDING, input=replace(FINDING.input, resize="antialias"))
    assert not choices(config, PredictorSettings(device_preparation=wanted)).device_preparation


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pixels_are_halved_where_a_gpu_rounds_them_anyway(
    device: torch.device, precision: Literal["float32", "bfloat16"]
) -> None:
    found = choices(FINDING, PredictorSettings(precision=precision))
    assert found.half == (precision == "bfloat16")
    on_gpu_in_half = found.half and device.type == "cuda"
    assert found.pixel_type == (torch.bfloat16 if on_gpu_in_half else torch.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_pixels": 7},
        {"max_pixels": 7},
        {"apply_exif": False},
        {"min_score": 0.5},
        {"max_detections": 7},
        {"test_short_sides": (48,)},
        {"test_flip": True},
        {"record": "proposals"},
        {"proposals": "print"},
        {"cpu_layers": False},
        {"decode_threads": 3},
        {"compile": True},
    ],
)
def test_other_settings_change_no_choice(device: torch.device, settings: dict[str, Any]) -> None:
    assert choices(FINDING, PredictorSettings(**settings)) == choices(FINDING, PredictorSettings())


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"device: got 'cuda:77', which is not to be had here; expected cpu"):
        choices(FINDING, PredictorSettings(device="cuda:77"))


def test_the_form_has_the_configurations_numbers_and_the_detectors_weights() -> None:
    config = replace(
        FINDING,
        dense=replace(FINDING.dense, post_nms_test=13),
        box_head=replace(FINDING.box_head, min_score=0.25, max_detections=3),
    )
    settings, built = PredictorSettings(cpu_layers=False), finding_detector()
    found = prepared(built, config, settings, choices(config, settings))
    assert found.dense is not None
    assert found.regions is not None
    assert found.dense.rules.test.post_nms == 13
    for rule in (found.dense.rules.detection, found.regions.box.detection):
        assert (rule.min_score, rule.max_detections) == (0.25, 3)
    assert not found.training
    assert not any(weight.requires_grad for weight in found.parameters())
    assert built.state_dict().keys() == found.state_dict().keys()
    assert all(weight is other for weight, other in zip(built.parameters(), found.parameters(), strict=True))
