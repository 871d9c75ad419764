"""Every file that decides about labels counts in the fingerprint, and no other."""

import importlib
import inspect
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
from PIL import Image

import maskrcnn_core
from maskrcnn_core.inference.code_fingerprint import NO_LABEL_SEES, code_fingerprint, deciding_files, fingerprint_below
from maskrcnn_core.inference.predictor import load_predictor
from tests.small_detector import save_small_detector

PACKAGE = Path(maskrcnn_core.__file__).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code") / "maskrcnn_core"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def changed(copy: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file of the copy, which is as it was after the test."""
    file = copy / request.param
    before = file.read_text()
    yield file
    file.write_text(before)


@pytest.mark.parametrize(
    "changed",
    [
        "inference/predictor.py",  # the path itself
        "inference/batch_stream.py",
        "model/detector.py",  # the network
        "model/dense/selection.py",
        "model/regions/region_stage.py",
        "model/survivors.py",
        "layers/winograd.py",
        "kernels/gpu/suppression.py",  # Triton's kernels
        "kernels/gpu/mask_runs.py",
        "kernels/cpu/winograd_transforms.py",  # Numba's
        "kernels/cpu/region_features.py",
        "run_lengths.py",  # masks as they are written
        "masks.py",
        "keypoints.py",
        "boxes.py",
        "data/decode.py",  # pixels, and how EXIF turns them
        "data/containers/header.py",
        "data/transform.py",
        "data/proposals.py",
        "structures.py",
        "weights/checkpoint.py",  # how weights reach the network
        "weights/format_1.py",
    ],
    indirect=True,
)
def test_a_change_of_code_that_decides_counts(copy: Path, changed: Path) -> None:
    before = fingerprint_below(copy)
    changed.write_text(changed.read_text() + "\nADDED = 1\n")
    assert fingerprint_below(copy) != before


@pytest.mark.parametrize(
    "changed",
    [
        "model/matching.py",
        "model/dense/losses.py",
        "model/dense/sampled_outputs.py",
        "model/heads/mask_sampling.py",
        "model/regions/sampling.py",
        "training/step.py",
        "evaluation/coco.py",
        "drawing/objects.py",
        "export/yolo.py",
        "report/page.py",
        "data/augment.py",
        "importers/torchvision.py",
    ],
    indirect=True,
)
def test_a_change_that_no_label_sees_does_not_count(copy: Path, changed: Path) -> None:
    before = fingerprint_below(copy)
    changed.write_text(changed.read_text() + "\nADDED = 1\n")
    assert fingerprint_below(copy) == before


@pytest.mark.parametrize("changed", ["boxes.py"], indirect=True)
def test_words_do_not_count(copy: Path, changed: Path) -> None:
    before = fingerprint_below(copy)
    source = changed.read_text()
    changed.write_text('"""Other words."""\n\n\n# a comment\n' + source.replace("\n\n", "\n# because\n\n"))
    assert changed.read_text() != source
    assert fingerprint_below(copy) == before


def test_moving_a_file_does_not_count(copy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "maskrcnn_core"
    shutil.copytree(copy, moved)
    (moved / "geometry").mkdir()
    (moved / "masks.py").rename(moved / "geometry" / "pasting.py")
    for file in moved.rglob("*.py"):
        text = file.read_text()
        file.write_text(text.replace("maskrcnn_core.masks", "maskrcnn_core.geometry.pasting"))
    assert "maskrcnn_core.geometry.pasting" in deciding_files(moved)
    assert fingerprint_below(moved) == fingerprint_below(copy)


def test_a_new_file_counts_from_its_first_import(copy: Path, tmp_path: Path) -> None:
    grown = tmp_path / "maskrcnn_core"
    shutil.copytree(copy, grown)
    (grown / "novelty.py").write_text("FACTOR = 1.0\n")
    assert fingerprint_below(grown) == fingerprint_below(copy)
    predictor = grown / "inference" / "encoding.py"
    predictor.write_text(predictor.read_text() + "\n\ndef late() -> None:\n    from maskrcnn_core import novelty\n")
    first = fingerprint_below(grown)
    (grown / "novelty.py").write_text("FACTOR = 2.0\n")
    assert fingerprint_below(grown) != first


def test_it_is_the_package_that_runs(copy: Path) -> None:
    assert code_fingerprint() == fingerprint_below(copy)
    assert len(code_fingerprint()) == 16


def test_what_is_said_to_touch_no_label_touches_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is labelled while every function of those modules fails."""
    save_small_detector(tmp_path)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    (expected,) = load_predictor(str(tmp_path)).predict([buffer.getvalue()])
    poisoned = 0
    for name in sorted(NO_LABEL_SEES):
        for function in _functions(importlib.import_module(name)):
            if not function.__code__.co_freevars:
                monkeypatch.setattr(function, "__code__", _fails.__code__)
                poisoned += 1
    assert poisoned > 40
    (record,) = load_predictor(str(tmp_path)).predict([buffer.getvalue()])
    assert record == expected
    assert record.detections


def _fails(*_: object, **__: object) -> None:
    raise AssertionError("a label saw this")


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Those that the module defines, without what wraps them; of classes what runs after they are made, since a network
    may hold a loss."""
    for value in vars(module).values():
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            yield inspect.unwrap(value)
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            for name, method in vars(value).items():
                if inspect.isfunction(method) and name not in ("__init__", "__post_init__"):
                    yield inspect.unwrap(method)
