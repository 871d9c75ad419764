"""How many bad images a run takes, and what it says of them."""

import json
from pathlib import Path

import pytest

from maskrcnn_core.training.batches import BadImage
from pipelines.training.bad_images import BadImages, most_by_chance, read_bad_images, write_bad_images
from pipelines.training.events import ImageReplaced
from pipelines.training.progress_log import ProgressLog


def bad(*ids: int) -> list[BadImage]:
    return [BadImage(number, "missing", f"image {number} (a/{number}.jpg): no such file") for number in ids]


def test_an_image_counts_once_however_often_it_is_met() -> None:
    images = BadImages(0.01, bad(1))
    assert images.add(bad(1, 2, 2)) == bad(2)
    assert images.add(bad(2, 1)) == []
    assert len(images) == 2
    assert images.all() == bad(1, 2)


@pytest.mark.parametrize(
    ("fraction", "count", "seen", "ends"),
    [
        (0.01, 10, 10, False),  # a handful says nothing
        (0.01, 11, 20, True),
        (0.01, 11, 1000, False),  # 10 on average, now and then 19 by chance
        (0.01, 20, 1000, True),
        (0.01, 1090, 100_000, False),
        (0.01, 1100, 100_000, True),
        (0.5, 500, 1000, False),
        (1.0, 900, 900, False),
        (0.0, 0, 100, False),
        (0.0, 1, 100_000, True),
    ],
)
def test_a_run_ends_where_there_are_more_than_chance_explains(
    fraction: float, count: int, seen: int, ends: bool
) -> None:
    images = BadImages(fraction, bad(*range(count)))
    assert (images.verdict(seen) is not None) == ends


def test_the_verdict_names_the_first_ones_and_the_setting() -> None:
    verdict = BadImages(0.01, bad(*range(40))).verdict(200)
    assert verdict is not None
    assert str(verdict).startswith(
        "40 of the first 200 training images cannot be used, more than data.max_bad_fraction (0.01) allows: image 0 "
        "(a/0.jpg): no such file; "
    )
    assert "image 4 (" in str(verdict)
    assert "image 5 (" not in str(verdict)
    assert "; and 35 more; mend these images" in str(verdict)
    assert "\n" not in str(verdict)


def test_a_true_share_of_the_allowed_one_hardly_ever_ends_a_run() -> None:
    """A hundred runs through 20,000 images of which every one is bad with a probability of one percent."""
    import numpy as np

    counts = np.random.default_rng(0).random((100, 20_000)) < 0.01
    running = counts.cumsum(axis=1)
    seen = np.arange(1, 20_001)
    allowed = np.maximum(10, [most_by_chance(int(number), 0.01) for number in seen])
    assert (running > allowed).any(axis=1).sum() <= 3


def test_the_list_survives_a_resume(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert read_bad_images(output) == []
    write_bad_images(output, [*bad(3, 1), BadImage(2, "failed", 'image 2: "é" \udce9\n')])
    assert read_bad_images(output)[:2] == bad(3, 1)
    lines = (tmp_path / "bad_images.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == [3, 1, 2]
    (tmp_path / "bad_images.jsonl").write_text(lines[0] + "\n{\n[]\n" + lines[1] + "\n" + lines[2][:20])
    assert read_bad_images(output) == bad(3, 1)


def test_the_first_ones_are_told_and_the_others_counted() -> None:
    log = ProgressLog(bad_images=BadImages(0.5))
    assert log.count_bad(bad(*range(6)), 100) is None
    assert log.count_bad(bad(*range(20)), 100) is None
    told = [event for event in log.take() if isinstance(event, ImageReplaced)]
    assert [event.reason for event in told] == [image.reason for image in bad(*range(10))]
    assert [event.is_last for event in told] == [False] * 9 + [True]
    assert len(log.bad_images()) == len(log.bad_images(19)) == 20
    assert log.bad_images(20) == []
    assert log.count_bad(bad(*range(100)), 100) is not None
