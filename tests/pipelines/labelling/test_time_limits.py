"""When work counts as hung."""

import time
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.inference.settings import PredictorSettings
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.progress import ProgressBoard
from pipelines.labelling.time_limits import BatchTimes, Watch, stalled_seconds
from pipelines.labelling.worker import LabelWorker
from pipelines.labelling.worker_settings import WorkerSettings
from tests.pipelines.fake_detector import load_fake, write_images
from tests.pipelines.labelling.test_worker import as_rows


def after(*seconds: float, images: int = 256, image_timeout: float = 600.0) -> float | None:
    """The limit of so many images after others that took so long."""
    times = BatchTimes(image_timeout)
    for some in seconds:
        times.took(images, some)
    return times.limit(images)


def test_a_hung_batch_is_noticed_in_minutes() -> None:
    assert after() == 1800.0  # instead of 600 s for each of 256 images
    assert after(90.0, 0.5) == 1800.0
    assert after(90.0, 0.5, 0.6) == 600.0 + 10 * 0.6  # one image may be slow, the first group as well
    assert after(*[0.5] * 40, 64.0) == 600.0 + 10 * 0.5
    assert after(*[64.0] * 40) == 600.0 + 10 * 64.0


def test_no_limit_is_longer_than_that_of_all_its_images() -> None:
    assert after(images=4, image_timeout=0.5) == 2.0
    assert after(9.0, 9.0, 9.0, images=4, image_timeout=2.0) == 8.0
    assert after(images=1, image_timeout=7200.0) == 7200.0
    assert after(1.0, 1.0, 1.0, images=1) == 600.0


def test_without_a_limit_for_an_image_there_is_none() -> None:
    assert after(image_timeout=0.0) is None
    assert after(1.0, 1.0, 1.0, 1.0, image_timeout=0.0) is None


@pytest.mark.parametrize(
    ("settings", "longest", "minutes"),
    [
        ({}, 250, 60),
        ({}, 8, 60),
        ({"use_gpu": True}, 1000, 60),
        ({"use_gpu": True, "rows_per_file": 5000}, 5000, 75),
        ({"stalled_minutes": 10.0}, 250, 10),
        ({"test_flip": True, "test_short_sides": (400, 600, 800)}, 250, 360),
    ],
)
def test_a_run_without_progress_ends_in_an_hour(settings: dict, longest: int, minutes: int) -> None:
    assert stalled_seconds(LabelConfig(**settings), longest) == 60.0 * minutes
    assert stalled_seconds(LabelConfig(**settings | {"stalled_minutes": 0.0}), longest) == -1.0


def test_a_worker_ends_its_process_at_the_limit_of_its_own_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", 8)
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr("pipelines.labelling.time_limits._START_SECONDS", 60.0)
    settings = WorkerSettings("good", PredictorSettings(), threads=1, group_size=4, image_timeout=0.4)
    worker = LabelWorker(load_fake, settings, ProgressBoard())
    worker.label(as_rows(tmp_path / "images"))
    assert ended == []  # some milliseconds each
    predictor: Any = worker._stream.predictor
    one = predictor._one

    def slowly(image: bytes) -> Any:
        time.sleep(delays.pop(0))
        return one(image)

    monkeypatch.setattr(predictor, "_one", slowly)
    delays = [0.2] * 4
    worker.label(as_rows(tmp_path / "images").slice(0, 4))
    assert ended == []  # each within its limit
    delays = [0.0, 1.0, 0.0, 0.0]
    worker.label(as_rows(tmp_path / "images").slice(0, 4))
    assert ended == [124]


def test_time_without_images_is_none_of_the_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.labelling.time_limits._LOOK_SECONDS", 0.01)
    times, busy = BatchTimes(0.1), False
    with Watch(times, lambda: busy, pytest.fail):
        time.sleep(0.3)
