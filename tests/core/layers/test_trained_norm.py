"""Norms of the trunk that learn: statistics of the joined batch, what stays frozen, and inference without them."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.layers.frozen_norm import FrozenAffine, FrozenAffineConv2d, fold
from maskrcnn_core.layers.trained_norm import BatchNormConv2d, WorkersBatchNorm2d
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.trunks.trunk import build_trunk
from maskrcnn_core.weights.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn_core.weights.initial import check_initial
from pipelines.training.config import TrainConfig, TrainRun
from tests.core.layers.joint_norm import IMAGES, loss_of, norm_of, one_of_two, shares
from tests.pipelines.training.test_run import SMALL


def model(norm: Literal["frozen", "sync_batch", "group"], **others: Any) -> ModelConfig:
    backbone = BackboneConfig("timm:resnet10t", pretrained=False, norm=norm, **{"frozen_stages": 2, **others})
    return replace(SMALL, backbone=backbone, categories=(Category(7, "door"),))


@pytest.mark.slow  # two processes that start torch
def test_two_workers_have_the_statistics_and_gradients_of_the_joined_batch(tmp_path: Path) -> None:
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    # The joined batch as one long image: a norm looks at channels and nothing else.
    norm, x = norm_of(torch.cat([part.permute(1, 0, 2, 3).flatten(1) for part in shares(IMAGES)], 1)[None, :, None])
    places = torch.cat([part.permute(1, 0, 2, 3).flatten(1) for part in shares(IMAGES.roll(1))], 1)[None, :, None]
    output = norm(x)
    loss_of(output, places).backward()
    assert x.grad is not None

    def joined(name: str) -> Tensor:
        return torch.cat([part[name].permute(1, 0, 2, 3).flatten(1) for part in found], 1)[None, :, None]

    torch.testing.assert_close(joined("output"), output.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined("x"), x.grad, rtol=1e-4, atol=1e-4)
    for name in ("weight", "bias"):  # data-parallel training averages them; their sum is the joined batch's
        grad = norm.get_parameter(name).grad
        torch.testing.assert_close(found[0][name + "_grad"] + found[1][name + "_grad"], grad, rtol=1e-4, atol=1e-2)
    for name, value in norm.state_dict().items():
        for part in found:
            torch.testing.assert_close(part[name], value, rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(joined("later"), norm.eval()(x).detach(), rtol=1e-5, atol=1e-5)


def test_alone_it_is_batch_norm() -> None:
    norm, x = norm_of(IMAGES)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), plain(x))
    assert norm.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in norm.state_dict().items())


def test_the_default_is_frozen() -> None:
    assert BackboneConfig().norm == "frozen"
    trunk = build_trunk("timm:resnet10t", pretrained=False, frozen_stages=2)
    kinds = {type(module) for module in trunk.modules()}
    assert FrozenAffineConv2d in kinds
    assert not kinds & {WorkersBatchNorm2d, BatchNormConv2d, nn.BatchNorm2d, nn.GroupNorm}


@pytest.mark.parametrize(("norm", "kind"), [("sync_batch", WorkersBatchNorm2d), ("group", nn.GroupNorm)])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "mobilenet_v2", "timm:resnet10t"])
def test_norms_learn_where_stages_do(name: str, norm: str, kind: type[nn.Module]) -> None:
    trunk = build_trunk(name, pretrained=False, frozen_stages=2, norm=norm)
    stages = [
        [module for path in stage for module in trunk.get_submodule(path).modules()] for stage in trunk.stage_paths()
    ]
    for stage in stages[:2]:
        assert not any(isinstance(module, kind | nn.BatchNorm2d) for module in stage)
        assert any(isinstance(module, FrozenAffineConv2d | FrozenAffine) for module in stage)
    for stage in stages[2:]:
        norms = [module for module in stage if isinstance(module, kind)]
        assert norms
        assert all(parameter.requires_grad for module in norms for parameter in module.parameters())
        assert not any(isinstance(module, FrozenAffineConv2d | FrozenAffine | nn.BatchNorm2d) for module in stage)
    torch.stack([features.mean() for features in trunk.train()(IMAGES)]).sum().backward()
    learning = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in learning)


def trained(config: ModelConfig) -> Detector:
    """A detector whose running statistics have moved away from where they began."""
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=False).train()
    with torch.no_grad():
        for number in range(5):
            detector.trunk(IMAGES.roll(number) * 2.0 + 1.0)
            for parameter in detector.trunk.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return detector


@torch.no_grad()
def test_weights_of_a_batch_norm_are_folded_for_inference() -> None:
    detector = trained(model("sync_batch"))
    moved = [m for m in detector.modules() if isinstance(m, WorkersBatchNorm2d)]
    variances = [norm.running_var for norm in moved if norm.running_var is not None]
    assert all(float((variance - 1.0).abs().max()) > 0.05 for variance in variances)
    assert len(variances) == len(moved)
    expected = detector.eval().trunk(IMAGES)
    folded = fold(copy.deepcopy(detector.trunk).train()).eval()
    assert not any(isinstance(module, WorkersBatchNorm2d | BatchNormConv2d) for module in folded.modules())
    for one, other in zip(folded(IMAGES), expected, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5


@pytest.mark.parametrize("norm", ["sync_batch", "group"])
@torch.no_grad()
def test_a_checkpoint_labels_as_the_training_evaluates(tmp_path: Path, norm: Literal["sync_batch", "group"]) -> None:
    detector = trained(model(norm))
    save_checkpoint(tmp_path, detector.state_dict(), model(norm))
    config, weights = load_checkpoint(tmp_path)
    assert config.backbone.norm == norm
    loaded = build_detector(config, load_pretrained=False)
    loaded.load_state_dict(weights)
    for one, other in zip(loaded.eval().trunk(IMAGES), detector.eval().trunk(IMAGES), strict=True):
        assert torch.equal(one, other)
    predictor = Predictor(loaded, config)
    for one, other in zip(predictor.detector.trunk(IMAGES), detector.trunk(IMAGES), strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5


def test_what_has_no_such_norm_is_refused(tmp_path: Path) -> None:
    for name, frozen in (("alexnet", 0), ("resnet18", 5)):
        with pytest.raises(ConfigError, match=r"model.backbone.norm: got group, but no stage that learns"):
            build_trunk(name, pretrained=False, frozen_stages=frozen, norm="group")
    c4 = replace(
        model("sync_batch"), pyramid=PyramidConfig(kind="c4"), dense=DenseConfig(anchors=AnchorConfig((32.0,)))
    )
    with pytest.raises(ConfigError, match=r"model.backbone.norm: got sync_batch with model.pyramid.kind c4"):
        build_detector(c4, load_pretrained=False)
    detector = build_detector(model("frozen"), load_pretrained=False)
    save_checkpoint(tmp_path, detector.state_dict(), model("frozen"))
    with pytest.raises(ConfigError, match=r"model.backbone.norm 'frozen', this run 'group'"):
        check_initial(model("group"), [tmp_path])
    with pytest.raises(ConfigError, match=r"train.accumulate: got 2, expected 1 with model.backbone.norm sync_batch"):
        TrainRun("run", model=model("sync_batch"), train=TrainConfig(accumulate=2))


def test_the_running_variance_is_unbiased_over_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few values that the factor count / (count - 1) shows: two workers with the same four each."""
    x = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.mul_(2))
    plain, norm = nn.BatchNorm2d(3), WorkersBatchNorm2d(3)
    torch.testing.assert_close(norm(x), plain(torch.cat((x, x)))[:1])
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)
