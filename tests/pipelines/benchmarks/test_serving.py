"""The benchmark of serving: a small one as a whole, and how answers are compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmark import main
from pipelines.benchmarks.serving import _compared

ONE = {"category_id": 1, "score": 0.5, "bbox": [1.0, 2.0, 3.0, 4.0]}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([ONE], "equal"),
        ([{**ONE, "score": 0.5000001}], "close"),
        ([{**ONE, "bbox": [1.0, 2.0, 3.0, 4.05]}], "close"),
        ([{**ONE, "score": 0.6}], "wrong"),
        ([{**ONE, "category_id": 2}], "wrong"),
        ([{**ONE, "bbox": [1.0, 2.0, 3.0, 5.0]}], "wrong"),
        ([], "wrong"),
        ([ONE, ONE], "wrong"),
    ],
)
def test_answers_are_compared(found: list[Any], expected: str) -> None:
    assert _compared(found, [ONE]) == expected


@pytest.mark.ray
@pytest.mark.slow  # Ray Serve and a second server start
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_nothing_is_lost_or_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    settings = {"requests": 12, "clients": 4, "num_images": 3, "short_side": 64, "threads": 1, "output": output}
    assert main(["serve", *(text for name, value in settings.items() for text in (f"--{name}", str(value)))]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "images/s" in line]
    assert ["0 wrong, 100.0% equal in every bit" in line for line in lines] == [False, True, False]
    loop, ours, plain = json.loads(output.read_text())["ways"]
    assert (loop["ratio"], ours["lost"], plain["lost"]) == (1.0, 0, 0)
    assert ours["p99_ms"] >= ours["p50_ms"] > 0
