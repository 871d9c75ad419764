"""Stages of a batch, prepared and drawn by the host or by the device, which here is the CPU too."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from jobs.benchmark import main
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from pipelines.benchmarks import stages
from pipelines.benchmarks.stage_steps import Clock, in_stages, one_batch
from pipelines.benchmarks.stages import batches_of_one_shape, flops_of, pixels_at_once
from tests.core.inference.test_predictor_device import IMAGES, PLAIN, image_of, predictor_of
from tests.small_detector import FINDING

ON_DEVICE = replace(PLAIN, device_preparation=True, device_masks=True)
NETWORK = ["trunk", "pyramid", "RPN head", "proposals (top k, NMS)", "RoIAlign for boxes", "box head"]
NETWORK += ["detections (softmax, NMS)", "RoIAlign for masks", "mask head", "masks into slots"]
NETWORK += ["boxes to the image's frame"]
DETECTED = ["to the device", *NETWORK, "results to the host"]
HOST = ["decode", "resize, normalise", "pad", *DETECTED, "paste, run lengths", "rows"]
DEVICE = ["decode", "pack", "copy to the device", "resize, normalise, pad", *DETECTED]
DEVICE += ["masks, run lengths", "records", "rows"]


def encoded(image: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


# 60 x 90 and 61 x 92 become 64 x 96; 64 x 96 is; two others are padded to another shape.
CONTENTS = [*map(encoded, IMAGES)]
ALIKE = [CONTENTS[0], CONTENTS[4], CONTENTS[1]]


@pytest.mark.parametrize(("settings", "names"), [(PLAIN, HOST), (ON_DEVICE, DEVICE)])
def test_stages_give_the_records_of_the_predictor(settings: PredictorSettings, names: list[str]) -> None:
    predictor = predictor_of(settings)
    clock = Clock(torch.device("cpu"))
    staged = in_stages(predictor, pixels_at_once([ALIKE], FINDING.input), clock)
    records = one_batch(staged, ALIKE, clock)
    assert records == predictor.predict(ALIKE)
    assert sum(len(record.detections) for record in records) > 10
    assert list(clock.work) == names
    assert all(work.seconds > 0 for work in clock.work.values())
    assert clock.work["decode"].bytes == sum(map(len, ALIKE)) + 3 * (60 * 90 + 61 * 92 + 64 * 96)


def test_afterwards_nothing_is_marked() -> None:
    predictor = predictor_of(ON_DEVICE)
    clock = Clock(torch.device("cpu"))
    one_batch(in_stages(predictor, pixels_at_once([ALIKE], FINDING.input), clock), ALIKE, clock)
    before = {name: work.seconds for name, work in clock.work.items()}
    predictor.predict(ALIKE)
    assert {name: work.seconds for name, work in clock.work.items()} == before


def test_batches_have_one_shape_and_are_full() -> None:
    assert batches_of_one_shape(CONTENTS, 1, FINDING.input) == [[content] for content in CONTENTS]
    assert batches_of_one_shape(CONTENTS, 2, FINDING.input) == [CONTENTS[:2]]
    assert batches_of_one_shape(CONTENTS, 3, FINDING.input) == [ALIKE]
    four = batches_of_one_shape(CONTENTS, 4, FINDING.input)
    assert four == [[CONTENTS[0], CONTENTS[0], CONTENTS[4], CONTENTS[1]]]


def test_operations_are_those_of_an_image() -> None:
    predictor = predictor_of(ON_DEVICE)
    alone, together = (
        flops_of(predictor, build_detector(FINDING, load_pretrained=False).eval(), contents)
        for contents in ([CONTENTS[0]], [CONTENTS[0]] * 3)
    )
    assert alone["trunk"] > alone["RPN head"] > 0 < alone["mask head"]
    assert together == pytest.approx(alone)


@pytest.mark.parametrize("sides", [[], ["--short_side", "64", "--long_side", "128"]])
def test_a_batch_on_the_device_is_measured_as_a_table_and_in_one_go(
    sides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, size in enumerate([(60, 90), (64, 96), (61, 92), (90, 60), (62, 93)]):
        (tmp_path / f"{index}.png").write_bytes(encoded(image_of(*size, index)))
    monkeypatch.setattr(stages, "peer_of", lambda run: None)
    monkeypatch.setattr(stages, "imported_predictor", lambda peer, run: predictor_of(ON_DEVICE))
    monkeypatch.setattr(stages, "arithmetic_rate", lambda device, dtype: 1e11)
    monkeypatch.setattr(stages, "copy_rate", lambda device: 1e10)
    figures = tmp_path / "stages.json"
    arguments = ["--images", str(tmp_path), "--batch", "2", "--rounds", "2", "--output", str(figures), *sides]
    assert main(["stages", *arguments, "--threads", str(torch.get_num_threads())]) == 0
    found = json.loads(figures.read_text())
    lines = capsys.readouterr().out.splitlines()
    # Two batches of the four landscapes; where all are brought to one shape, of four of all five.
    assert (found["batch"], found["images"]) == (2, 4)
    assert lines[1] == "  4 images in batches of 2, 2 rounds, medians of an image"
    assert [stage["name"] for stage in found["stages"]] == DEVICE
    assert all(figure > 0 for figure in found["in_one_go"].values())
    in_network = [stage["seconds"] for stage in found["stages"] if stage["name"] in NETWORK]
    assert found["in_one_go"]["network"] == pytest.approx(sum(in_network))
    assert lines[-1].startswith("  an image where nothing waits between the stages: trunk to boxes ")
    assert "of 8 batches in one call" in lines[-1]
