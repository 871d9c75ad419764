"""Which settings belong to a fingerprint, and how they replace a checkpoint's."""

import json
from typing import Any

import pytest

from maskrcnn_core.config.heads import BoxHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.settings import (
    PredictorSettings,
    combined_fingerprint,
    deciding_settings,
    with_overrides,
)


def test_labels_made_by_earlier_versions_keep_their_fingerprint() -> None:
    """A finished or interrupted run is recognised by it: a new setting must not change it while it is not used."""
    assert combined_fingerprint("abc", PredictorSettings()) == "c1b282b711cd2f7da5938f9d6f415b3f"
    other = PredictorSettings(min_score=0.5, device="cuda", max_detections=3)
    assert combined_fingerprint("abc", other) == "b92460f85f88884f54bec80c6f111894"


@pytest.mark.parametrize(
    "settings",
    [
        PredictorSettings(test_short_sides=(400,)),
        PredictorSettings(test_short_sides=(400, 500)),
        PredictorSettings(test_flip=True),
        PredictorSettings(precision="bfloat16"),
        PredictorSettings(apply_exif=False),
    ],
)
def test_what_changes_results_changes_the_fingerprint(settings: PredictorSettings) -> None:
    assert combined_fingerprint("abc", settings) != combined_fingerprint("abc", PredictorSettings())
    assert combined_fingerprint("abd", settings) != combined_fingerprint("abc", settings)


def test_what_does_not_change_results_does_not() -> None:
    assert deciding_settings(PredictorSettings(device="cuda", batch_pixels=1)) == deciding_settings(PredictorSettings())


def test_deciding_settings_come_back_from_json() -> None:
    deciding = deciding_settings(PredictorSettings(test_short_sides=(400, 500), test_flip=True))
    assert deciding["test_short_sides"] == [400, 500]
    assert deciding["test_flip"] is True
    assert json.loads(json.dumps(deciding)) == deciding


def test_a_list_of_sizes_will_do() -> None:
    sizes: Any = [400, 500]
    settings = PredictorSettings(test_short_sides=sizes)
    assert settings == PredictorSettings(test_short_sides=(400, 500))
    assert hash(settings) == hash(PredictorSettings(test_short_sides=(400, 500)))


def test_overrides() -> None:
    config = ModelConfig(box_head=BoxHeadConfig(min_score=0.1, max_detections=7))
    assert with_overrides(config, PredictorSettings()) == config
    box_head = with_overrides(config, PredictorSettings(min_score=0.0, max_detections=3)).box_head
    assert (box_head.min_score, box_head.max_detections) == (0.0, 3)


def test_a_number_of_threads_is_checked() -> None:
    with pytest.raises(ConfigError, match="decode_threads: got -1, expected 0"):
        PredictorSettings(decode_threads=-1)
