"""The worker with a simulated GPU, in small."""

import json
import re
from pathlib import Path

import pytest

from jobs.benchmark import main
from maskrcnn_core.inference.preparation import Request
from pipelines.benchmarks.worker import _groups

_SMALL = ["--num_images", "60", "--image_ms", "0.1", "--batch_ms", "0.1", "--short_side", "64", "--rows_per_file", "20"]


def test_both_ways_label_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", *_SMALL, "--delay_ms", "1", "--output", str(tmp_path / "figures.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"60 images of \d+ sizes, 0.1 ms each and 0.1 ms a batch, reading delayed by 1 ms", lines[1])
    figures = json.loads((tmp_path / "figures.json").read_text())
    for line, way, name in zip(lines[2:4], figures["ways"], ("drained at every group", "one stream"), strict=True):
        assert re.match(rf"  {name} +busy +[\d.]+%  mean batch +[\d.]+ +[\d.]+ images/s", line)
        assert way["name"] == name
        assert 0.0 < way["busy"] <= 1.0
        assert 1.0 <= way["mean_batch"] <= 60.0


def test_sizes_of_an_annotation_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 40 + number} for number in range(2)]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert main(["worker", *_SMALL, "--annotations", str(tmp_path / "a.json")]) == 0
    assert "60 images of 2 sizes" in capsys.readouterr().out


def test_groups_end_at_their_size_and_at_a_pause() -> None:
    one = Request(0, b"")
    assert [len(group) for group in _groups([None, one, one, one, None, None, one], 2)] == [2, 1, 1]
    assert list(_groups([], 2)) == []
