"""`train.compile`: the same step, compiled; and what is said where there is nothing to compile with."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from torch._inductor import config as inductor

from maskrcnn_core.config.model import Category
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import ImageBatch, Targets
from maskrcnn_core.training.compilation import check_compiler
from maskrcnn_core.training.optimizer import build_optimizer
from maskrcnn_core.training.step import StepResult, training_step
from tests.pipelines.training.test_run import SIDE, SMALL

CPU = torch.device("cpu")


def batch() -> tuple[ImageBatch, Targets]:
    """Two images with a rectangle each; what is sampled depends on the seeds alone."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor([[SIDE, SIDE]] * 2)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=generator)
    boxes = torch.tensor([[[4.0, 8.0, 28.0, 40.0]], [[20.0, 16.0, 60.0, 48.0]]])
    present = torch.ones(2, 1, dtype=torch.bool)
    targets = Targets(
        boxes=boxes,
        labels=torch.zeros(2, 1, dtype=torch.long),
        crowd=~present,
        valid=present,
        masks=torch.full((2, 1, 28, 28), 255, dtype=torch.uint8),
        mask_boxes=boxes,
        seeds=torch.tensor([3, 4]),
    )
    return ImageBatch(pixels, sizes, sizes), targets


def step(detector: Detector) -> StepResult:
    torch.manual_seed(0)
    optimizer = build_optimizer(detector, learning_rate=0.01, momentum=0.9, weight_decay=1e-4)
    return training_step(detector.train(), *batch(), optimizer, learning_rate=0.01, with_grad_norm=True)


@pytest.mark.slow  # compiles the trunk and the pyramid, forward and backward: a minute or two on two cores
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU: no g++ here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")  # torch's compiler
def test_a_compiled_step_is_the_step() -> None:
    check_compiler(CPU)
    torch.manual_seed(0)
    config = replace(
        SMALL,
        categories=(Category(7, "door"),),
        backbone=BackboneConfig("timm:resnet10t", pretrained=False, frozen_stages=0),
    )
    eager = build_detector(config, load_pretrained=False)
    compiled = copy.deepcopy(eager)
    compiled.trunk.compile()
    compiled.pyramid.compile()
    torch._dynamo.utils.counters.clear()
    expected, found = step(eager), step(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # trunk and pyramid were compiled
    assert found.names == expected.names
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-4, atol=1e-6)
    weights = dict(compiled.named_parameters())
    for name, value in eager.named_parameters():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_no_compiler_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(
        ConfigError, match=r"train.compile: torch cannot compile for cpu .*; install a C\+\+ compiler"
    ) as told:
        check_compiler(CPU)
    assert "\n" not in str(told.value)
