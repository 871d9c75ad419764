"""TensorFlow.js's manifests: written by hand here, and the two real ones of a package."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn_core.weights.budget import FileFault
from maskrcnn_core.weights.weight_manifest import is_manifest, read_manifest
from tests.fetched_packages import FACE_API, fetched_files

WEIGHTS: list[dict[str, Any]] = [
    {"name": "a/b", "shape": [2, 2], "dtype": "float32"},
    {
        "name": "a/q",
        "shape": [3],
        "dtype": "float32",
        "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.0},
    },
    {"name": "size", "shape": [], "dtype": "int32", "quantization": {"dtype": "uint8", "scale": 1, "min": 3}},
]
CONTENT = np.array([1, 2, 3, 4], "<f4").tobytes() + bytes([0, 1, 255]) + bytes([2])


def written(folder: Path, document: object, **shards: bytes) -> Path:
    (folder / "manifest.json").write_text(json.dumps(document))
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    return folder / "manifest.json"


@pytest.mark.parametrize("whole", [True, False])
def test_numbers_are_what_they_stand_for(whole: bool, tmp_path: Path) -> None:
    """In two files whose border lies inside of a tensor; also under `weightsManifest` of a model.json."""
    groups = [{"paths": ["one", "two"], "weights": WEIGHTS}]
    path = written(tmp_path, groups if whole else {"weightsManifest": groups}, one=CONTENT[:6], two=CONTENT[6:])
    assert is_manifest(path.read_bytes()[:32])
    found = read_manifest(path)
    assert list(found) == ["a/b", "a/q", "size"]
    assert torch.equal(found["a/b"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(found["a/q"], torch.tensor([-1.0, -0.5, 126.5]))
    assert (found["size"].item(), found["size"].dtype, found["size"].shape) == (5, torch.int32, ())


def group(*weights: object, paths: object = ("one",)) -> list[dict[str, Any]]:
    return [{"paths": list(paths) if isinstance(paths, tuple) else paths, "weights": list(weights)}]


def of_shape(shape: object, **more: object) -> dict[str, Any]:
    return {"name": "a", "shape": shape, "dtype": "float32", **more}


FAULTS: dict[str, tuple[object, str]] = {
    "a number": (3, "no manifest"),
    "no group": ([], "no manifest"),
    "of something else": ({"images": []}, "no manifest"),
    "no paths": ([{"weights": WEIGHTS}], "no list of paths"),
    "no weights": ([{"paths": ["one"]}], "no list of weights"),
    "a path out of the folder": (group(of_shape([4]), paths=("../one",)), "expected one beside it"),
    "an absolute path": (group(of_shape([4]), paths=("/etc/passwd",)), "expected one beside it"),
    "a path that is a number": (group(of_shape([4]), paths=(3,)), "expected one beside it"),
    "a missing file": (group(of_shape([4]), paths=("two",)), "is not beside it"),
    "a file many times": (group(of_shape([4]), paths=("one",) * 900), "a file twice"),
    "very many files": (group(of_shape([4]), paths=tuple(map(str, range(1001)))), "more than 1000"),
    "more than there is": (group(of_shape([5])), "ends behind the 16 bytes"),
    "less than there is": (group(of_shape([3])), "4 bytes more"),
    "a huge shape": (group(of_shape([2**31 - 1] * 8)), "ends behind"),
    "a shape of text": (group(of_shape(["4"])), "no list of whole numbers"),
    "a negative side": (group(of_shape([-4])), "no list of whole numbers"),
    "a true side": (group(of_shape([True])), "no list of whole numbers"),
    "no shape": (group({"name": "a", "dtype": "float32"}), "no list of whole numbers"),
    "no name": (group({"shape": [4], "dtype": "float32"}), "without a name"),
    "text": (group(of_shape([4], dtype="string")), "kind of numbers"),
    "quantised to nothing": (group(of_shape([16], quantization={"dtype": "uint8"})), "without scale and min"),
    "quantised to no end": (
        group(of_shape([16], quantization={"dtype": "uint8", "scale": 10**400, "min": 0})),
        "without scale and min",
    ),
    "two of one name": (group(of_shape([2]), of_shape([2])), "two weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_refused(fault: str, tmp_path: Path) -> None:
    document, said = FAULTS[fault]
    with pytest.raises(FileFault, match=said):
        read_manifest(written(tmp_path, document, one=b"\0" * 16))


@pytest.mark.parametrize("text", ["[", "[" * 100_000, "[" + "1" * 5000 + "]", '["\\ud800"]'])
def test_broken_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(FileFault):
        read_manifest(tmp_path / "manifest.json")


def test_the_real_manifests_of_a_package(request: pytest.FixtureRequest) -> None:
    names = ("tiny_face_detector_model", "ssd_mobilenetv1_model")
    members = [f"package/model/{name}{end}" for name in names for end in ("-weights_manifest.json", ".bin")]
    tiny, _, ssd, _ = fetched_files(request.config, FACE_API, members)
    found = read_manifest(tiny)
    assert found["conv0/filters"].shape == (3, 3, 3, 16)
    assert found["conv1/depthwise_filter"].shape == (3, 3, 16, 1)
    assert sum(tensor.numel() for tensor in found.values()) == 193_321
    assert found["conv0/filters"].amin() >= -1.2069440
    found = read_manifest(ssd)
    assert found["Prediction/BoxPredictor_0/ClassPredictor/weights"].shape == (1, 1, 512, 9)
    assert sum(tensor.numel() for tensor in found.values()) == 5_555_541
