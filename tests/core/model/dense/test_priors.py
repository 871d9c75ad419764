"""SSD's default boxes: their sides and places by eye, how many there are, and the tables of the presets."""

from pathlib import Path

import pytest
import torch

from jobs.cli import parse_run
from maskrcnn_core.importers.default_boxes import Priors, default_boxes
from maskrcnn_core.importers.torchvision_ssd import ssd_conventions, ssdlite_conventions
from maskrcnn_core.model.dense.anchors import PriorAnchors, pyramid_anchors
from pipelines.training.config import TrainRun

CONFIGS = Path(__file__).resolve().parents[4] / "jobs" / "configs" / "one_stage"
FEW, MANY = (2,), (2, 3)
CAFFE_300 = default_boxes((21, 45, 99, 153, 207, 261, 315), (FEW, MANY, MANY, MANY, FEW, FEW))
CAFFE_512 = default_boxes(
    (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72), (FEW, MANY, MANY, MANY, MANY, FEW, FEW)
)


def test_sides_by_eye() -> None:
    (level,) = default_boxes((16, 64), [(4,)])
    assert level == ((16, 16), (32, 32), (32, 8), (8, 32))
    (limited,) = default_boxes((16, 64), [(4,)], limit=20)
    assert limited == ((16, 16), (20, 20), (20, 8), (8, 20))


def test_places_by_eye() -> None:
    rule = PriorAnchors((((4.0, 2.0),), ((8.0, 8.0), (2.0, 4.0))), spacing=(8.0, 20.0))
    fine, coarse = pyramid_anchors(rule, (8, 16), [(1, 2), (1, 1)], (16, 32), torch.device("cpu"))
    assert fine.tolist() == [[2, 3, 6, 5], [10, 3, 14, 5]]  # around 4, 4 and 12, 4
    assert coarse.tolist() == [[6, 6, 14, 14], [9, 8, 11, 12]]  # around 10, 10
    fitted = PriorAnchors(rule.priors, fitted_strides=True)
    fine, coarse = pyramid_anchors(fitted, (8, 16), [(1, 2), (3, 1)], (20, 30), torch.device("cpu"))
    centres = (coarse[::2, :2] + coarse[::2, 2:]) / 2
    torch.testing.assert_close(centres, torch.tensor([[15.0, 10 / 3], [15, 10], [15, 50 / 3]]))  # 20 / 3 apart
    assert fine.tolist()[0] == [5.5, 9, 9.5, 11]
    assert rule.per_level(2) == (1, 2)


@pytest.mark.parametrize(
    ("priors", "cells", "count"),
    [(CAFFE_300, (38, 19, 10, 5, 3, 1), 8732), (CAFFE_512, (64, 32, 16, 8, 4, 2, 1), 24564)],
)
def test_there_are_as_many_as_the_paper_says(priors: Priors, cells: tuple[int, ...], count: int) -> None:
    assert sum(side * side * len(level) for side, level in zip(cells, priors, strict=True)) == count


@pytest.mark.parametrize(
    ("name", "priors"),
    [
        ("caffe_ssd300_vgg16", CAFFE_300),
        ("caffe_ssd512_vgg16", CAFFE_512),
        ("torchvision_ssd300_vgg16", ssd_conventions().dense.anchors.priors),
        ("torchvision_ssdlite320_mobilenet_v3_large", ssdlite_conventions(reduced=True).dense.anchors.priors),
    ],
)
def test_presets_have_these_tables(name: str, priors: Priors) -> None:
    argv = ["--config", str(CONFIGS / f"{name}.yaml"), "--output", "runs/one"]
    found = parse_run(TrainRun, prog="train", argv=argv).model.dense.anchors.priors
    assert len(found) == len(priors)
    for level, expected in zip(found, priors, strict=True):
        torch.testing.assert_close(torch.tensor(level), torch.tensor(expected), rtol=1e-5, atol=1e-3)


def test_tensorflows_table_by_eye() -> None:
    argv = ["--config", str(CONFIGS / "tensorflow_ssd_mobilenet_v2.yaml"), "--output", "runs/one"]
    first, second, *_, last = parse_run(TrainRun, prog="train", argv=argv).model.dense.anchors.priors
    # Scales .2 to .95 of 300 pixels: of the lowest level a square of .1 and .2 in ratios 2 and 1/2.
    torch.testing.assert_close(
        torch.tensor(first), torch.tensor([[30, 30], [84.8528, 42.4264], [42.4264, 84.8528]]), rtol=0, atol=1e-3
    )
    assert second[0] == (105, 105)
    assert second[-1][0] == pytest.approx(300 * (0.35 * 0.5) ** 0.5, abs=1e-3)
    assert last[-1][0] == pytest.approx(300 * 0.95**0.5, abs=1e-3)
    cells = (19, 10, 5, 3, 2, 1)
    assert sum(side * side * count for side, count in zip(cells, (3, 6, 6, 6, 6, 6), strict=True)) == 1917
