"""The words of `jobs.benchmark`, its mistakes, and one small measurement of each kind."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.benchmark import BENCHMARKS, main
from maskrcnn_core.data.generated.pictures import generate_dataset
from pipelines.benchmarks import detection, encoding, labelling
from pipelines.benchmarks import peer as benchmarking
from pipelines.benchmarks.config import BenchmarkRun
from pipelines.benchmarks.detection import DetectionComparison, DetectionWay
from pipelines.benchmarks.labelling import LabellingComparison, LabellingWay
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect

SMALL = ["--num_images", "1", "--rounds", "1", "--short_side", "64", "--max_detections", "3", "--threads", "1"]
HALF = ["--precision", "bfloat16"]
FOUND = DetectionComparison(
    (DetectionWay("the peer", 0.5, 1.0, 100.0, 1.0), DetectionWay("ours", 0.2, 2.5, 99.5, 0.984, 3 << 30)),
    8,
    "a machine of this kind",
)


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return generate_dataset(tmp_path / "set", num_images=1, image_size=(64, 80)).parent / "images"


def test_report_of_detect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[BenchmarkRun] = []

    def measure(run: BenchmarkRun) -> DetectionComparison:
        measured.append(run)
        return FOUND

    monkeypatch.setattr(detection, "benchmark_detect", measure)
    assert main(["detect", "--rounds", "5", "--short_side", "320"]) == 0
    assert measured == [BenchmarkRun(rounds=5, short_side=320)]
    assert capsys.readouterr().out.splitlines() == [
        BENCHMARKS["detect"].meaning,
        "  8 images in batches of 1, 5 rounds, medians",
        "  the peer    0.5000 s/image     2.00 images/s  100.0 detections/image, 100.0% of the first's  x 1.00",
        "  ours        0.2000 s/image     5.00 images/s   99.5 detections/image,  98.4% of the first's"
        "    3.0 GiB of GPU memory  x 2.50",
        "  a machine of this kind",
    ]


def test_report_of_label(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ways = (
        LabellingWay("bare loop", 2.0, 1.0, 0, 0),
        LabellingWay("jobs.label", 1.9, 0.95, 3 << 20, 1 << 19),
        LabellingWay("another way", 0.5, 0.25, 9 << 20, 6 << 20),
    )
    found = LabellingComparison(ways, 8, 100.0, 0.987, "a machine of this kind")
    monkeypatch.setattr(labelling, "benchmark_label", lambda run: found)
    assert main(["label", "--rounds", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "  8 images, 5 rounds, medians; 100.0 detections/image",
        "  bare loop       2.00 images/s   1.00 of the bare loop",
        "  jobs.label      1.90 images/s   0.95 of the bare loop        3 MiB peak       0.5 MiB written",
        "  another way     0.50 images/s   0.25 of the bare loop        9 MiB peak       6.0 MiB written",
        "  the detector of jobs.label was busy for 98.7% of the time",
        "  a machine of this kind",
    ]


def test_report_of_label_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ways = (
        LabellingWay("bare loop", 200.0, 1.0, 0, 0, 0.987),
        LabellingWay("jobs.label", 190.0, 0.95, 3 << 20, 1 << 19, 1.0),
        LabellingWay("another way", 9.0, 0.05, 9 << 20, 6 << 20),
    )
    found = LabellingComparison(ways, 2000, 100.0, 0.987, "a machine of this kind", 64)
    monkeypatch.setattr(labelling, "benchmark_label", lambda run: found)
    assert main(["label", "--use_gpu", "true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:5] == [
        "  2000 images (64 files, repeated), 3 rounds, medians; 100.0 detections/image",
        "  bare loop     200.00 images/s   1.00 of the bare loop  GPU busy  99%",
        "  jobs.label    190.00 images/s   0.95 of the bare loop  GPU busy 100%"
        "        3 MiB peak       0.5 MiB written",
        "  another way     9.00 images/s   0.05 of the bare loop               "
        "        9 MiB peak       6.0 MiB written",
    ]


@pytest.mark.parametrize("arguments", [[], ["detekt"], ["--rounds", "3"]])
def test_without_a_known_name_the_names_are_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == (
        f"error: NAME: got {arguments[0] if arguments else ''!r}, expected one of {', '.join(BENCHMARKS)}"
    )
    assert err.splitlines()[0].startswith("usage: python -m jobs.benchmark NAME")


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["usage:", *BENCHMARKS]
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
    monkeypatch.setattr(benchmarking, "peer_model", lambda *sides, **_: None)  # seconds that no mistake should cost
    assert main([name, *(text.format(tmp=tmp_path) for text in arguments), "--threads", "1"]) == 2
    assert capsys.readouterr().err == f"error: {expected.format(tmp=tmp_path)}\n"


@pytest.mark.slow  # two ResNet-50 detectors are built and run: some 10 s
@pytest.mark.parametrize("model", ["masks", "keypoints", "retinanet"])
def test_both_sides_of_detect_find_the_same(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures" / "detect.json"
    arguments = [*HALF, "--images", str(images), *SMALL, "--ablate", str(model == "masks").lower()]
    assert main(["detect", "--model", model, "--output", str(figures), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    ways = json.loads(figures.read_text())["ways"]
    names = ["float32", "autocast to bfloat16", "ours, float32", "ours, bfloat16"]
    if model == "masks":
        names += ["without our winograd", "without our roi_align", "cpu_layers off"]
    places = slice(2, 2 + len(names))
    assert all(name in way["name"] and name in line for name, way, line in zip(names, ways, lines[places], strict=True))
    assert "3.0 detections/image, 100.0% of the first's" in lines[4]
    assert ways[2]["agreement"] == 1.0
    assert ways[0]["ratio"] == 1.0 < 100 * ways[3]["ratio"]


@pytest.mark.slow  # two ResNet-50 detectors are built and run: some 10 s
@pytest.mark.parametrize("model", ["masks", "keypoints"])
def test_stages_cover_the_way_from_file_to_row(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "stages.json"
    assert main(["stages", "--model", model, "--output", str(figures), "--images", str(images), *SMALL]) == 0
    found = {stage["name"]: stage for stage in json.loads(figures.read_text())["stages"]}
    head = "mask head" if model == "masks" else "keypoint head"
    assert list(found)[:2] == ["decode", "resize, normalise"]
    assert {"trunk", "pyramid", "RPN head", "proposals (top k, NMS)", "box head", head, "rows"} < set(found)
    # ResNet-50 has 4.1 G multiplications and additions at 224 x 224 (torchvision's table); here 64 x 96, no classifier.
    assert found["trunk"]["flops"] == pytest.approx(2 * 4.09e9 * 64 * 96 / 224**2, rel=0.05)
    assert found[head]["flops"] > 0
    assert all(stage["seconds"] > 0 and stage["floor"] >= 0 for stage in found.values())
    assert f"  {head}" in capsys.readouterr().out


def test_encoding_is_measured_where_the_bytes_are_equal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--masks", "5", "--height", "100", "--width", "120", "--rounds", "2", "--threads", "1"]
    assert main(["encode", *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  5 masks in 120 x 100 pixels, 2 rounds, medians; all bytes equal"
    assert float(lines[4].split()[-1]) > 0
    monkeypatch.setattr(encoding, "encode_masks", lambda masks, *_, **__: ["0"] * len(masks))
    with pytest.raises(RuntimeError, match="5 of 5 run lengths differ"):
        main(["encode", *small])


def test_reading_is_measured_with_its_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--num_images", "40", "--rounds", "1", "--readers", "8", "--delay_ms", "5"]
    assert main(["reading", *small, "--output", str(tmp_path / "figures.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  40 images of 1")
    assert lines[3].startswith("  Arrow, 16 threads ")
    assert lines[4].startswith("  labelling, 8 threads ")
    ways = json.loads((tmp_path / "figures.json").read_text())["ways"]
    assert [way["requests"] for way in ways] == [2.0, 1.0]
    assert all(way["images_per_second"] > 0 and way["milliseconds"] > 0 for way in ways)
    assert (ways[0]["ratio"], ways[1]["ratio"] > 0) == (1.0, True)


def test_what_differs_is_not_compared(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    monkeypatch.setattr(detection, "peer_of", lambda run: torch.nn.Identity())
    monkeypatch.setattr(detection, "imported_predictor", lambda peer, run: None)
    label = {"category_id": 1, "score": 0.9, "bbox": [0.0, 0.0, 5.0, 5.0]}
    monkeypatch.setattr(detection, "peer_labels", lambda *_, **__: [[label]])
    monkeypatch.setattr(detection, "our_labels", lambda *_: [()])
    with pytest.raises(RuntimeError, match=r"ours has 0\.0% of torchvision's detections"):
        main(["detect", "--images", str(images), *SMALL])


def test_the_pace_is_that_after_the_first_quarter() -> None:
    points = [(1, 5.0), (20, 14.0), (30, 16.0), (100, 30.0)]
    assert labelling._steady_rate(points) == 70 / 14
    assert labelling._steady_rate([(1, 0.5), (40, 9.0), (41, 10.0)]) == 4.1


@pytest.mark.ray
@pytest.mark.slow  # a ResNet-50 detector in a Ray worker of its own: some 20 s
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns about settings of its own that it sets itself
def test_label_measures_the_whole_pipeline(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with connect(ClusterConfig(num_cpus=4)):
        assert main(["label", "--images", str(images), *SMALL]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "of the bare loop" in line]
    names = ["bare loop over the predictor", "jobs.label", "Ray documentation's way, torchvision"]
    assert [line.split("  ")[1].strip() for line in lines] == names
    assert all(float(line.split(" images/s")[0].split()[-1]) > 0 for line in lines)


def test_scoring_benchmark_measures_both_and_says_that_they_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--images", "3", "--detections", "12", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 images, 36 detections" in lines[1]
    assert lines[2].split()[0] == "pycocotools"
    assert lines[3].split()[:2] == ["jobs.evaluate", "(hotcoco)"]
    assert "the 24 numbers are equal in every bit" in lines[4]
