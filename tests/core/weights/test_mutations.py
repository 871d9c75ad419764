"""Files of weights and checkpoint folders with random damage: read as they are, or refused in one line."""

import io
import json
import pickle
import random
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.errors import UserError
from maskrcnn_core.importers.convert import read_foreign
from maskrcnn_core.weights.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn_core.weights.checkpoint_config import CONFIG_NAME, WEIGHTS_NAME
from tests.core.weights.written_graph import constant
from tests.core.weights.written_graph import tensor as tensor_message

STATE = {
    "backbone.body.conv1.weight": torch.arange(8.0).view(2, 4),
    "rpn.head.cls_logits.bias": torch.ones(3),
    "roi_heads.box_head.fc6.weight": torch.arange(6.0).view(2, 3).t(),
}
CASES = 150
FORMS = ("zip", "old", "pickle", "arrays 0", "arrays 2", "arrays 5", "safetensors", "graph", "manifest")


def written(form: str) -> bytes:
    content = {
        "model": STATE,
        "optimizer": {"state": {0: torch.ones(2)}, "lr": 0.1},
        "kind": random.Random(0),
        "epoch": 3,
    }
    file = io.BytesIO()
    if form in ("zip", "old"):
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    elif form == "safetensors":
        file.write(safetensors.torch.save({name: tensor.contiguous() for name, tensor in STATE.items()}))
    elif form == "graph":
        for name, tensor in STATE.items():
            file.write(constant(name, tensor_message(tensor.contiguous().numpy())))
    elif form == "manifest":
        weights = [{"name": name, "shape": list(tensor.shape), "dtype": "float32"} for name, tensor in STATE.items()]
        file.write(json.dumps([{"paths": ["shard"], "weights": weights}]).encode())
    elif form == "pickle":
        file.write(pickle.dumps(content))
    else:
        arrays = {"model": {name: tensor.numpy() for name, tensor in STATE.items()}}
        file.write(pickle.dumps(arrays, protocol=int(form[-1])))
    return file.getvalue()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, or with bits, bytes, numbers and parts changed."""
    if rng.random() < 0.15:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(changed))
        kind = rng.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.randrange(256)
        elif kind == 2:
            number = rng.choice((0, 2**27, 2**31 - 1, 2**32 - 1))
            changed[place : place + 4] = struct.pack("<I", number)
        elif kind == 3:
            other = rng.randrange(len(changed))
            changed[place : place + 8] = changed[other : other + 8]
        else:
            del changed[place : place + rng.randrange(1, 8)]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def damaged_description(content: bytes, rng: random.Random) -> bytes:
    """A sound zip archive in which the pickle is damaged."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, damaged(part, rng) if name.endswith("data.pkl") else part)
    return file.getvalue()


def assert_one_line(error: UserError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 2000


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_of_weights(form: str, tmp_path: Path) -> None:
    rng, content = random.Random(form), written(form)
    (tmp_path / "a.pth").write_bytes(content)
    (tmp_path / "shard").write_bytes(b"".join(tensor.contiguous().numpy().tobytes() for tensor in STATE.values()))
    assert set(read_foreign(tmp_path / "a.pth").state) == set(STATE)
    for number in range(CASES):
        inside = form == "zip" and number % 2 == 0
        (tmp_path / "a.pth").write_bytes(damaged_description(content, rng) if inside else damaged(content, rng))
        try:
            read_foreign(tmp_path / "a.pth")
        except UserError as error:
            assert_one_line(error)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_damaged_checkpoint_folders(name: str, tmp_path: Path) -> None:
    config = ModelConfig(categories=(Category(1, "cell"), Category(2, "größer")))
    save_checkpoint(tmp_path, {key: value.contiguous() for key, value in STATE.items()}, config)
    rng, content = random.Random(name), (tmp_path / name).read_bytes()
    for _ in range(CASES):
        changed = damaged(content, rng)
        (tmp_path / name).write_bytes(changed)
        try:
            _, state = load_checkpoint(tmp_path)
        except UserError as error:
            assert_one_line(error)
        else:  # damage to settings may make other settings; damage to weights never makes other weights
            assert all(torch.equal(state[key], value) for key, value in STATE.items())
