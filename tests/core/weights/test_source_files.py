"""Weights are found in the files that trainings write, whatever lies around; what is no tensor is left out by name."""

import argparse
import collections
import copy
import dataclasses
import datetime
import enum
import functools
import pathlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.convert import read_foreign
from maskrcnn_core.model.trunks.imagenet_weights import is_classifier
from maskrcnn_core.weights.source_files import SourceFile, read_source, read_state

KEYS = {
    "torchvision": ("backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.0.weight", "rpn.head.cls_logits.bias"),
    "detectron2": (
        "backbone.bottom_up.stem.conv1.weight",
        "proposal_generator.rpn_head.conv.weight",
        "roi_heads.x",
    ),
    "mmdetection": ("backbone.conv1.weight", "neck.lateral_convs.0.conv.weight", "rpn_head.rpn_cls.weight"),
}


def weights(family: str = "torchvision", value: float = 1.0) -> dict[str, Tensor]:
    return {key: torch.full((2,), value + place) for place, key in enumerate(KEYS[family])}


@dataclasses.dataclass
class Settings:
    rate: float = 0.1


class Phase(enum.Enum):
    TRAIN = 1


class AttributeDict(dict[str, Any]):
    """As Lightning's, mmengine's and others' dictionaries."""


class HistoryBuffer:
    """As mmengine's: arrays of numbers in an object."""

    def __init__(self) -> None:
        self._log_history = np.array([1.0, 2.0])
        self._statistics_methods = collections.OrderedDict(mean=len)


def surroundings() -> dict[str, Any]:
    """What trainings keep beside the weights."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"milestones": collections.Counter([16, 22]), "function": functools.partial(max, 1)},
        "args": argparse.Namespace(lr=0.02, output=pathlib.Path("x"), device=torch.device("cpu")),
        "epoch": 25,
        "scaler": {},
        "best_map": np.float64(0.37),
        "array": np.arange(3),
        "object array": np.array([{"a": 1}, None], dtype=object),
        "date": datetime.datetime(2026, 1, 1),
        "np date": np.datetime64("2026-01-01"),
        "phase": Phase.TRAIN,
        "settings": Settings(),
        "random": torch.get_rng_state(),
        "numpy random": np.random.RandomState(0).get_state(),
        "defaults": collections.defaultdict(list, a=[1]),
        "set": {1, "two", (3,)},
        "frozen": frozenset({1}),
        "bytes": bytearray(b"abc"),
        "complex": 1j,
        "size": torch.Size((1, 2)),
        "dtype": torch.float16,
        "slice": slice(1, 2),
        "history": {"loss": HistoryBuffer()},
        "config": AttributeDict(model=AttributeDict(depth=50)),
        "namespace": types.SimpleNamespace(a=1),
        "loss": nn.CrossEntropyLoss(),
        "none": None,
        "huge": 10**5000,
    }


def same(found: SourceFile, expected: dict[str, Tensor]) -> None:
    assert list(found.state) == list(expected)
    assert all(torch.equal(found.state[key], value) for key, value in expected.items())


def saved(content: object, path: Path, form: str) -> Path:
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("family", list(KEYS))
@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_what_a_training_script_saves(family: str, form: str, tmp_path: Path) -> None:
    content = {"model": weights(family), **surroundings(), "model_ema": weights(family, 5.0)}
    found = read_foreign(saved(content, tmp_path / "a.pth", form))
    same(found, weights(family))
    assert found.place == "model"
    assert [name.split(" (")[0] for name in found.left_out] == [*surroundings(), "model_ema"]
    assert "args (argparse.Namespace)" in found.left_out
    assert f"settings ({__name__}.Settings)" in found.left_out
    assert "loss (torch.nn.modules.loss.CrossEntropyLoss)" in found.left_out


WRAPPERS = (
    "",
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "weights",
    "net",
    "ema",
    "model_ema",
    "anything",
)
PREFIXES = ("", "module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "a.b.c.", "detector.model.")


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_wrapper_and_prefix(wrapper: str, prefix: str, tmp_path: Path) -> None:
    inner = {prefix + key: value for key, value in weights().items()}
    content = {"epoch": 3, wrapper: inner, "beside": {"x": torch.ones(1)}} if wrapper else inner
    found = read_foreign(saved(content, tmp_path / "a.pth", "zip"))
    same(found, weights())
    assert found.place == f"{wrapper}.{prefix}".strip(".")


def test_lightnings_files(tmp_path: Path) -> None:
    content = {
        "state_dict": {f"model.{key}": value for key, value in weights().items()} | {"criterion.weight": torch.ones(3)},
        "hyper_parameters": AttributeDict(net="x", kind=Settings, options=Settings()),
        "callbacks": {"ModelCheckpoint{'monitor': 'map'}": {"best": torch.tensor(0.5)}},
        "optimizer_states": [surroundings()["optimizer"]],
        "loops": {"fit_loop": {"state_dict": {}}},
    }
    found = read_foreign(saved(content, tmp_path / "a.ckpt", "zip"))
    same(found, weights())
    assert found.left_out == (
        f"hyper_parameters ({__name__}.AttributeDict)",
        "callbacks",
        "optimizer_states",
        "loops",
        "state_dict.criterion.weight",
    )


def test_an_average_alone_and_beside(tmp_path: Path) -> None:
    average = {"n_averaged": torch.tensor(7)} | {f"module.{key}": value for key, value in weights().items()}
    found = read_foreign(saved(average, tmp_path / "a.pth", "zip"))
    same(found, weights())
    assert found.left_out == ("n_averaged",)
    for content in (
        {"ema": weights(value=3.0), "deeper": {"model": weights()}},
        {"ema_state_dict": weights(value=3.0), "state_dict": weights()},
        {"teacher": weights(value=3.0), "student": weights()},
    ):
        same(read_foreign(saved(content, tmp_path / "a.pth", "zip")), weights())


class Head(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(size, size, 1)
        self.norm = nn.BatchNorm2d(size)
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.register_buffer("saved", torch.ones(3))
        self.register_buffer("nothing", None)
        self.plain = torch.ones(5)
        self.function = max


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(2), nn.Sequential(Head(3), nn.ReLU())])
        self.tied = self.heads[0]
        self.scale = nn.Parameter(torch.ones(2))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_network_that_was_saved_whole(form: str, tmp_path: Path) -> None:
    network = Network()
    for content in (network, {"model": network, "epoch": 3}, {"model": nn.DataParallel(network)}):
        found = read_state(saved(content, tmp_path / "a.pth", form))
        expected = network.state_dict()
        assert set(found) == set(expected)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({f"model.{k}": v for k, v in weights().items()}, tmp_path / "a.safetensors")
    found = read_foreign(tmp_path / "a.safetensors")
    assert set(found.state) == set(KEYS["torchvision"])
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[:-3])
    with pytest.raises(CheckpointError, match=r"cut\.pth: not readable as safetensors .* copy it again"):
        read_foreign(tmp_path / "cut.pth")


def test_a_classifier_among_other_things(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(2), "fc.weight": torch.ones(3)}
    content = {"args": argparse.Namespace(a=1), "state_dict": {f"module.{k}": v for k, v in state.items()}}
    assert set(read_state(saved(content, tmp_path / "a.pth", "zip"), is_classifier)) == set(state)


def test_the_names_of_classes_beside_objects(tmp_path: Path) -> None:
    meta = {"dataset_meta": AttributeDict(CLASSES=("cat", "dog")), "history": HistoryBuffer(), "cfg": Settings()}
    content = {"state_dict": weights("mmdetection"), "meta": meta, "message_hub": {"log": HistoryBuffer()}}
    assert read_foreign(saved(content, tmp_path / "a.pth", "zip")).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": Settings(), "epoch": 3},
            r"got dict, .*only model \(\S*Settings\), epoch \(int\)\); save one: torch",
        ),
        (
            Settings(),
            r"got \S*Settings, expected a state dict of tensors; save one: torch\.save\(model\.st",
        ),
        ([torch.ones(1)], r"got list, expected a state dict of tensors"),
        (torch.ones(1), r"got Tensor, expected"),
        ({1: torch.ones(1)}, r"got dict, expected"),
        ({}, r"got dict, expected"),
        (nn.ReLU(), r"got torch\.nn\.modules\.activation\.ReLU, expected"),
    ],
)
def test_files_without_weights_say_what_they_hold(content: object, message: str, tmp_path: Path) -> None:
    for form in ("zip", "old"):
        with pytest.raises(CheckpointError, match=message) as caught:
            read_source(saved(content, tmp_path / "a.pth", form))
        assert "weights_only" not in str(caught.value)


def test_names_are_fit_for_a_terminal(tmp_path: Path) -> None:
    bad = "\x1b]0;title\x07\n\x1b[31m"
    for content in (
        {f"{bad}weight": torch.ones(1), f"{bad}more": Settings()},
        {f"{bad}model": {"a": 1}},
        {**weights(), f"{bad}more": torch.ones(1)},
    ):
        path = saved(content, tmp_path / "a.pth", "zip")
        try:
            found = read_foreign(path)
        except CheckpointError as error:
            shown = str(error)
        else:
            shown = " ".join((*found.left_out, found.place))
        assert shown.isprintable()


def test_neither_torch_nor_pickle_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({"model": weights()}, tmp_path / "a.pth", "zip")
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    same(read_foreign(path), weights())


def test_state_of_equal_parts_is_not_taken_apart(tmp_path: Path) -> None:
    """A network of one part is not unwrapped beyond the names of networks."""
    state = {"head.weight": torch.ones(1), "head.bias": torch.ones(1)}
    assert set(read_state(saved(copy.deepcopy(state), tmp_path / "a.pth", "zip"))) == set(state)
