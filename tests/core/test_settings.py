"""Every setting of every job: what is accepted can be built, what is refused is one line that names the setting."""

import dataclasses
import importlib
import math
import random
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.training.optimizer import build_optimizer, learning_rate
from maskrcnn_core.training.sampler import counter_generator
from maskrcnn_core.training.seeds import image_seeds
from maskrcnn_core.training.step import seed_step
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.data_config import AugmentConfig

ROOT = Path(importlib.import_module("maskrcnn_core").__file__ or "").parents[1]
HUGE = 10**18


def configurations() -> list[type[Any]]:
    """Every dataclass of settings."""
    files = [*ROOT.glob("maskrcnn_core/config/*.py"), *ROOT.glob("pipelines/*/config.py")]
    names = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    others = ["jobs.demo_config", "maskrcnn_core.inference.settings", "maskrcnn_core.report.settings"]
    modules = [importlib.import_module(name) for name in [*names, *others]]
    found = [
        value
        for module in modules
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == module.__name__
    ]
    return sorted(found, key=lambda kind: kind.__name__)


REQUIRED: dict[str, dict[str, Any]] = {
    "Category": {"id": 1, "name": "cell"},
    "ConvertRun": {"source": "a.pth", "output": "b"},
    "EvaluateRun": {"labels": "a", "annotations": "b"},
    "ExportRun": {"labels": "a", "format": "coco", "output": "b"},
    "LabelRun": {"checkpoint": "a", "images": "b", "output": "c"},
    "ProposeRun": {"images": "a", "output": "b"},
    "PriorsRun": {"annotations": "a"},
    "ReportRun": {"labels": "a", "output": "b"},
    "TradeoffRun": {"checkpoint": "a", "images": "b", "annotations": "c"},
    "TrainRun": {"output": "a"},
    "VerifyRun": {"labels": "a"},
}


def fields(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Names and types of a dataclass's own settings."""
    hints = typing.get_type_hints(kind)
    return ((name, hint) for name, hint in hints.items() if not dataclasses.is_dataclass(hint))


def named(kinds: list[type[Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


def made(kind: type[Any], /, **settings: Any) -> Any:
    return kind(**REQUIRED.get(kind.__name__, {}) | settings)


def without_null(hint: Any) -> Any:
    return next(argument for argument in typing.get_args(hint) if argument is not type(None))


def strange_values(hint: Any) -> list[Any]:
    """Values that no setting of the type can have, whatever it means."""
    if type(None) in typing.get_args(hint):
        return [value for value in strange_values(without_null(hint)) if value is not None]
    if typing.get_origin(hint) is typing.Literal:
        return ["", "no such choice", 3, None, [], float("nan")]
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return [None, "text", 3, *([value] * 3 for value in strange_values(item))]
    values: dict[Any, list[Any]] = {
        int: ["1", 1.5, True, float("nan"), math.inf, None, 2**63, -(2**63), -(10**5000), []],
        float: ["1", True, math.nan, math.inf, -math.inf, None, 10**400, []],
        bool: [1, 0, "true", None],
        str: [1, None, ["a"], b"a"],
    }
    return values.get(hint, [])


def odd_values(hint: Any) -> list[Any]:
    """Values of the type at the ends of what it can hold."""
    if type(None) in typing.get_args(hint):
        return [None, *odd_values(without_null(hint))]
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        lengths = (0, 1, 2, 1000) if arguments[-1] is Ellipsis else (len(arguments), 0)
        return [(value,) * length for value in odd_values(arguments[0]) for length in lengths]
    values: dict[Any, list[Any]] = {
        int: [0, 1, -1, 3, 64, 1000, 10**6, HUGE, 2**63 - 1],
        float: [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, 1e9, 1],
        bool: [True, False],
        str: ["", "x", "\0", "\x1b[2J", "x" * 200, "/nowhere", "resnet18"],
    }
    return values.get(hint, [Category(1, "a"), Category(1, "b"), Category(-1, "")])


def one_line(error: ConfigError) -> str:
    line = str(error)
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 1500
    return line


@named(configurations())
def test_values_of_another_type_are_refused(kind: type[Any]) -> None:
    for name, hint in fields(kind):
        for value in strange_values(hint):
            with pytest.raises(ConfigError) as caught:
                made(kind, **{name: value})
            assert re.match(rf"([\w.]+\.)?{name}: got ", one_line(caught.value)), value


@named(configurations())
def test_odd_values_are_accepted_or_refused_in_one_line(kind: type[Any]) -> None:
    for name, hint in fields(kind):
        for value in odd_values(hint):
            try:
                made(kind, **{name: value})
            except ConfigError as error:
                one_line(error)


def sections(kind: type[Any], *place: str) -> Iterator[tuple[type[Any], tuple[str, ...]]]:
    """The sections of a configuration, and their own, with the place of each."""
    for name, hint in typing.get_type_hints(kind).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield hint, (*place, name)
            yield from sections(hint, *place, name)


SECTIONS = dict(sections(ModelConfig))
USED = ModelConfig(  # all its parts in use, on a small trunk
    backbone=BackboneConfig(name="resnet18", pretrained=False),
    keypoint_head=KeypointHeadConfig(enabled=True, layers=2),
    box_head=BoxHeadConfig(convs=1),
    categories=(Category(1, "person"), Category(2, "cell")),
)


def changed(config: Any, place: tuple[str, ...], **settings: Any) -> Any:
    """The configuration with other settings in the section at a place."""
    if place:
        settings = {place[0]: changed(getattr(config, place[0]), place[1:], **settings)}
    return dataclasses.replace(config, **settings)


def drawn(section: Any, rng: random.Random) -> Any:
    """The section with some settings at the ends of what they can hold, its own sections' too."""
    for name, hint in typing.get_type_hints(type(section)).items():
        if dataclasses.is_dataclass(hint):
            section = dataclasses.replace(section, **{name: drawn(getattr(section, name), rng)})
        elif rng.random() < 0.15 and (type(section), name) not in _NETWORKS:
            section = dataclasses.replace(section, **{name: rng.choice(odd_values(hint))})
    return section


_NETWORKS = ((BackboneConfig, "name"), (BackboneConfig, "weights"))


def built(config: ModelConfig) -> None:
    with torch.device("meta"):
        build_detector(config, load_pretrained=False)


@pytest.mark.slow  # some hundred networks
@named(list(SECTIONS))
def test_what_a_model_may_be_can_be_built(kind: type[Any]) -> None:
    for name, hint in fields(kind):
        for value in odd_values(hint):
            try:
                config = changed(USED, SECTIONS[kind], **{name: value})
                if kind is not InputConfig:  # which nothing is built from
                    built(config)
            except ConfigError as error:
                one_line(error)


@pytest.mark.slow  # some hundred networks
@pytest.mark.parametrize("seed", range(10))
def test_what_a_model_may_be_in_many_ways_at_once_can_be_built(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        try:
            outer = [place[0] for place in SECTIONS.values() if len(place) == 1]
            chosen = {name: drawn(getattr(USED, name), rng) for name in outer}
            chosen["dense"] = changed(chosen["dense"], ("anchors",), every_level=True)
            built(dataclasses.replace(USED, **chosen))
        except ConfigError as error:
            one_line(error)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_a_training_may_be_can_be_started(kind: str) -> None:
    for name, value in [(name, value) for name, hint in fields(TrainConfig) for value in odd_values(hint)]:
        try:
            train = TrainConfig(**{"optimizer": kind, name: value})
        except ConfigError:
            continue
        network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        optimizer = build_optimizer(
            network,
            learning_rate=train.peak_learning_rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            bias_decay=train.weight_decay_bias,
            norm_decay=train.weight_decay_norm,
            algorithm=train.optimizer,
        )
        assert optimizer.param_groups
        for step in (0, train.steps // 2, train.steps - 1):
            rate = learning_rate(
                step,
                peak=train.peak_learning_rate,
                steps=train.steps,
                warmup_steps=train.warmup_steps,
                warmup_factor=train.warmup_factor,
                schedule=train.schedule,
                decay_steps=train.decay_steps,
                decay_factor=train.decay_factor,
            )
            assert 0.0 <= rate <= train.peak_learning_rate
        assert image_seeds(train.seed, train.steps, [0]).shape == (1,)
        seed_step(train.seed, train.steps, 0)
        counter_generator(train.seed, 0, train.steps, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_crop": 1}, r"train\.mask_crop: got 1, expected 0 \(input resolution\), or 3 to"),
        ({"mask_crop": 2}, r"train\.mask_crop: got 2"),
        ({"seed": -1}, r"train\.seed: got -1, expected 0 or more"),
        ({"seed": 2**63}, r"train\.seed: got 9223372036854775808, expected a whole number of at most 2\^63 - 1"),
        ({"learning_rate": math.inf}, r"train\.learning_rate: got inf, expected a finite number"),
        ({"weight_decay": math.nan}, r"train\.weight_decay: got nan, expected a finite number"),
        ({"decay_steps": (5, 5)}, r"train\.decay_steps: got \(5, 5\), expected increasing steps"),
        ({"decay_steps": (-5, 5)}, r"train\.decay_steps: got"),
        ({"learning_rate": 1e5, "batch_size": 10**6, "reference_batch_size": 1}, r"train\.learning_rate: got"),
    ],
)
def test_training_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, "precision: got 'float16', expected one of float32, bfloat16"),
        ({"record": "boxes"}, "record: got 'boxes', expected one of detections, proposals"),
        ({"device": "gpu"}, "device: got 'gpu', expected cpu, cuda, cuda:NUMBER"),
        ({"device": "cuda:-1"}, "device: got 'cuda:-1'"),
        ({"min_score": math.nan}, "min_score: got nan"),
        ({"max_detections": 0}, "max_detections: got 0"),
        ({"max_pixels": 0}, "max_pixels: got 0"),
        ({"test_short_sides": (0,)}, "test_short_sides: got"),
        ({"test_short_sides": (HUGE,)}, "test_short_sides: got"),
        ({"decode_threads": -1}, "decode_threads: got -1"),
    ],
)
def test_predictor_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        PredictorSettings(**settings)


def test_contradictory_pairs() -> None:
    for make in (
        lambda: TrainRun("x", model=ModelConfig(), train=TrainConfig(batch_size=1, num_workers=2)),
        lambda: TrainConfig(min_workers=2),
        lambda: AugmentConfig(jitter_scale=(2.0, 0.1)),
        lambda: AugmentConfig(copy_paste=0.5),
        lambda: ModelConfig(categories=(Category(1, "a"), Category(1, "b"))),
        lambda: dataclasses.replace(ModelConfig().input, long_side=10),
        lambda: dataclasses.replace(ModelConfig().dense, negative_overlap=0.9),
    ):
        with pytest.raises(ConfigError):
            make()
