from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import save_checkpoint
from maskrcnn_core.weights.class_rows import copied_rows
from maskrcnn_core.weights.initial import load_initial_weights
from tests.core.model.test_detector import CONFIG


def of(*names: str, **changes: Any) -> ModelConfig:
    return replace(CONFIG, categories=tuple(Category(5 * i + 1, name) for i, name in enumerate(names)), **changes)


def test_rows_by_eye() -> None:
    ours, theirs = of("dog", "cat"), of("cat", "owl", "dog")
    own = {"regions.box.head.classes.weight": torch.zeros(3, 1), "regions.box.head.deltas.bias": torch.zeros(8)}
    other = {
        "regions.box.head.classes.weight": torch.tensor([[1.0], [2.0], [3.0], [9.0]]),  # cat, owl, dog, background
        "regions.box.head.deltas.bias": torch.arange(12.0),  # four for each class
    }
    found = copied_rows(own, other, ours, theirs)
    assert found["regions.box.head.classes.weight"].tolist() == [[3.0], [1.0], [9.0]]
    assert found["regions.box.head.deltas.bias"].tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    assert own["regions.box.head.classes.weight"].tolist() == [[0.0]] * 3


def test_a_category_without_a_namesake_stays_as_built_and_none_takes_nothing() -> None:
    own = {"regions.box.head.classes.bias": torch.tensor([5.0, 6.0, 7.0])}
    other = {"regions.box.head.classes.bias": torch.tensor([1.0, 2.0])}
    found = copied_rows(own, other, of("dog", "cat"), of("cat"))
    assert found["regions.box.head.classes.bias"].tolist() == [5.0, 1.0, 2.0]
    assert copied_rows(own, other, of("dog", "cat"), of("fish")) == {}


@pytest.mark.parametrize("kind", ["fcn", "mlp"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_whole_detector(
    tmp_path: Path, kind: Literal["fcn", "mlp"], activation: Literal["sigmoid", "softmax"]
) -> None:
    head = MaskHeadConfig(channels=8, layers=1, kind=kind, activation=activation)
    theirs, ours = of("cat", "owl", "dog", mask_head=head), of("dog", "fox", mask_head=head)
    torch.manual_seed(0)
    other, detector = (build_detector(config, load_pretrained=False) for config in (theirs, ours))
    built = {name: value.clone() for name, value in detector.state_dict().items()}
    save_checkpoint(tmp_path, other.state_dict(), theirs)
    report = load_initial_weights(detector, ours, [tmp_path])
    assert (report.common, report.new) == (("dog",), ("fox",))
    assert report.fresh == ()
    parts = {name.rpartition(".")[0] for name in report.by_category}
    assert parts == {"regions.box.head.classes", "regions.box.head.deltas", "regions.mask.head.predictor"}
    state, source = detector.state_dict(), other.state_dict()
    for name in report.taken:
        assert torch.equal(state[name], source[name]), name
    for name in report.by_category:
        groups = {"regions.box.head.deltas": (2, 3)}.get(name.rpartition(".")[0])
        with_background = name.startswith("regions.box.head.classes") or activation == "softmax"
        groups = groups or ((3, 4) if with_background else (2, 3))
        new, old, fresh = (
            tensor.unflatten(0, (count, -1))
            for tensor, count in ((state[name], groups[0]), (source[name], groups[1]), (built[name], groups[0]))
        )
        assert torch.equal(new[0], old[2]), name  # dog
        assert torch.equal(new[1], fresh[1]), name  # fox
        if groups[0] == 3:
            assert torch.equal(new[2], old[3]), name  # background


def test_equally_many_other_categories_start_afresh(tmp_path: Path) -> None:
    theirs, ours = of("cat", "owl", "dog"), of("one", "two", "three")
    other, detector = (build_detector(config, load_pretrained=False) for config in (theirs, ours))
    save_checkpoint(tmp_path, other.state_dict(), theirs)
    report = load_initial_weights(detector, ours, [tmp_path])
    assert report.fresh_parts == ("regions.box.head.classes", "regions.box.head.deltas", "regions.mask.head.predictor")
    assert (report.common, report.new) == ((), ("one", "two", "three"))
    assert not torch.equal(
        detector.state_dict()["regions.box.head.classes.weight"], other.state_dict()["regions.box.head.classes.weight"]
    )


def one_stage(*names: str) -> ModelConfig:
    """Boxes straight from the dense stage, two anchors at each position."""
    dense = replace(
        CONFIG.dense,
        finds="detections",
        loss=DenseLossConfig("focal"),
    )
    off = {"box_head": BoxHeadConfig(enabled=False), "mask_head": MaskHeadConfig(enabled=False)}
    return of(*names, dense=dense, **off)


def test_rows_of_a_one_stage_detector_by_eye() -> None:
    """The classes of one anchor after those of another."""
    ours, theirs = one_stage("dog", "cat"), one_stage("cat", "owl", "dog")
    own = {"dense.head.logits.bias": torch.zeros(4)}
    other = {"dense.head.logits.bias": torch.tensor([1.0, 2, 3, 11, 12, 13])}
    found = copied_rows(own, other, ours, theirs)
    assert found["dense.head.logits.bias"].tolist() == [3.0, 1, 13, 11]
    assert own["dense.head.logits.bias"].tolist() == [0.0] * 4


def test_rows_of_position_sensitive_scores_by_eye() -> None:
    """Four bins of one class after those of another, and background's at the end."""
    regions = replace(CONFIG.regions, transform="position_pool", box_resolution=2)
    boxes = replace(CONFIG.box_head, class_agnostic=True)
    ours, theirs = (of(*names, regions=regions, box_head=boxes) for names in (("dog", "fox"), ("cat", "dog")))
    own = {"regions.box.transform.classes.bias": torch.zeros(12)}
    other = {"regions.box.transform.classes.bias": torch.arange(12.0)}
    found = copied_rows(own, other, ours, theirs)
    assert found["regions.box.transform.classes.bias"].tolist() == [4.0, 5, 6, 7, 0, 0, 0, 0, 8, 9, 10, 11]
