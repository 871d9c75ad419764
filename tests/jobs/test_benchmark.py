"""The words of `jobs.benchmark`, its mistakes, and one small measurement of each kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.benchmark import main
from maskrcnn_core.benchmark_config import BenchmarkRun
from maskrcnn_core.cluster_config import ClusterConfig
from maskrcnn_core.data.generated import generate_dataset
from pipelines import benchmarking
from pipelines.benchmarking import Comparison
from pipelines.cluster import connect

SMALL = ["--num_images", "1", "--rounds", "1", "--short_side", "64", "--max_detections", "3", "--threads", "1"]
FOUND = Comparison(("the peer", "ours"), (0.5, 0.2), 2.5, (100.0, 99.5), 8, "a machine of this kind")


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return generate_dataset(tmp_path / "set", num_images=1, image_size=(64, 80)).parent / "images"


@pytest.mark.parametrize("name", ["detect", "label"])
def test_report(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[BenchmarkRun] = []

    def measure(run: BenchmarkRun) -> Comparison:
        measured.append(run)
        return FOUND

    monkeypatch.setattr(benchmarking, f"benchmark_{name}", measure)
    assert main([name, "--rounds", "5", "--short_side", "320"]) == 0
    assert measured == [BenchmarkRun(rounds=5, short_side=320)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 8 images, 5 rounds, medians")
    assert [line.split() for line in lines[1:3]] == [
        ["the", "peer", "0.500", "s/image", "2.00", "images/s", "100.0", "detections/image"],
        ["ours", "0.200", "s/image", "5.00", "images/s", "99.5", "detections/image"],
    ]
    assert lines[1].index("s/image") == lines[2].index("s/image")
    assert lines[3:] == ["  speed of the second against the first: 2.50", "  a machine of this kind"]


@pytest.mark.parametrize("arguments", [[], ["detekt"], ["--rounds", "3"]])
def test_without_a_known_name_the_names_are_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == (
        f"error: NAME: got {arguments[0] if arguments else ''!r}, expected one of detect, label, evaluate, tradeoff"
    )
    assert err.splitlines()[0].startswith("usage: python -m jobs.benchmark NAME")


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["usage:", "detect", "label", "evaluate", "tradeoff"]
    assert err == ""


@pytest.mark.parametrize("name", ["detect", "label"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--images", "{tmp}"], "{tmp}: no images with .jpg, .jpeg, .png; expected a folder of images"),
        (["--images", "{tmp}/absent"], "{tmp}/absent: no images with .jpg, .jpeg, .png; expected a folder of images"),
        (["--rounds", "0"], "rounds: got 0, expected a number above 0"),
        (["--precision", "float64"], "precision: got float64, expected one of float32, bfloat16"),
    ],
)
def test_mistakes_are_one_line(
    name: str,
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmarking, "peer_model", lambda *sides: None)  # seconds that no mistake should cost
    assert main([name, *(text.format(tmp=tmp_path) for text in arguments), "--threads", "1"]) == 2
    assert capsys.readouterr() == ("", f"error: {expected.format(tmp=tmp_path)}\n")


@pytest.mark.slow  # two ResNet-50 detectors are built and run: some 10 s
def test_both_sides_of_detect_find_the_same(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "--images", str(images), *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines[1:3]] == [["3.0", "detections/image"]] * 2
    assert float(lines[3].split()[-1]) > 0


@pytest.mark.ray
@pytest.mark.slow  # a ResNet-50 detector in a Ray worker of its own: some 20 s
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns about settings of its own that it sets itself
def test_label_measures_the_whole_pipeline(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with connect(ClusterConfig(num_cpus=4)):
        assert main(["label", "--images", str(images), *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1].strip() for line in lines[1:3]] == ["bare loop over the predictor", "jobs.label"]
    assert lines[2].split()[-2:] == ["3.0", "detections/image"]


def test_scoring_benchmark_measures_both_and_says_that_they_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--images", "3", "--detections", "12", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 images, 36 detections" in lines[0]
    assert lines[1].split()[0] == "pycocotools"
    assert lines[2].split()[:2] == ["jobs.evaluate", "(hotcoco)"]
    assert "the 24 numbers are equal in every bit" in lines[3]
