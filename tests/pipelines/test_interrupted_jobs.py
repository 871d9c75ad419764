"""Labelling and training, each killed twenty times by SIGTERM, SIGINT and SIGKILL at random moments, and then let run.

CHAOS_SEED=7 CHAOS_ROUNDS=20 python -m pytest -m long tests/pipelines/test_interrupted_jobs.py -s
"""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.weights.checkpoint import load_checkpoint
from pipelines.benchmarks.chaos import small_checkpoint
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.interruptions import Ended, Job, interrupted, moments

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(3600)]

_SEED = int(os.environ.get("CHAOS_SEED", "0"))
_ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "20"))
_SECONDS_OF_WORK = 10.0  # that the latest signals leave to a start
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}

_MODEL = {
    "input": {"short_side": 64, "long_side": 96},
    "backbone": {"name": "efficientnet_lite0", "pretrained": False, "frozen_stages": 0},
    "pyramid": {"channels": 8},
    "dense": {
        "batch_size": 16,
        "pre_nms_train": 20,
        "pre_nms_test": 20,
        "post_nms_train": 10,
        "post_nms_test": 10,
    },
    "regions": {"batch_size": 8},
    "box_head": {"channels": 8},
    "mask_head": {"channels": 4, "layers": 1},
}
_TRAIN = {
    "batch_size": 1,
    "learning_rate": 0.002,
    "warmup_steps": 2,
    "decay_steps": [],
    "checkpoint_every": 25,
    "log_every": 5,
    "threads_per_worker": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated pictures, a detector for them, and settings to train one."""
    folder = tmp_path_factory.mktemp("data")
    generate_dataset(folder / "set", num_images=60 * _ROUNDS, seed=1, image_size=(96, 128))
    small_checkpoint(folder / "checkpoint")
    source = {"images": str(folder / "set" / "images"), "annotations": str(folder / "set" / "annotations.json")}
    settings = {"model": _MODEL, "train": _TRAIN, "data": {"check_images": 0, "train": source}}
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    return folder


def killed_again_and_again(
    name: str, arguments: Sequence[str], folder: Path, longest: float, undo: Callable[[], None]
) -> None:
    """Gives one command so often, each time ended by a signal, and prints what came of each. `undo` is called for a run
    that was over before its signal, so that there is work again."""
    dice = random.Random(_SEED)
    numbers = [_SIGNALS[index % len(_SIGNALS)] for index in range(_ROUNDS)]
    dice.shuffle(numbers)
    for number, seconds in zip(numbers, moments(_SEED, longest, _ROUNDS), strict=True):
        ended = interrupted(Job(name, arguments, folder), seconds, number)
        while ended is None or ended.code == 0:  # a run that was just ending may end as if nothing had come
            print(f"{signal.Signals(number).name} after {seconds:.1f} s: over before", flush=True)
            undo()
            ended = interrupted(Job(name, arguments, folder), seconds, number)
        print(
            f"{signal.Signals(number).name} after {seconds:.1f} s: code {ended.code} in {ended.seconds:.1f} s, "
            f"{len(ended.left)} left, {ended.err.strip()!r}",
            flush=True,
        )
        check_end(ended, number)


def seconds_until(job: Job, has_come: Callable[[], bool]) -> float:
    """From the start of a job to a sign of its work."""
    while not has_come():
        assert job.process.poll() is None, job.end()
        time.sleep(0.1)
    return time.monotonic() - job.started


def check_end(ended: Ended, number: int) -> None:
    """One line, the signal's own code, soon, and nothing left. After SIGKILL Ray's agents end by themselves, and on a
    busy machine they take their time."""
    assert ended.code == _CODES[signal.Signals(number)], ended
    if number == signal.SIGKILL:
        return
    assert ended.left == (), ended
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert re.match(r"interrupted.*the same command", lines[0]), lines
    assert ended.seconds < 35, ended


def test_labelling_killed_again_and_again_ends_as_undisturbed(data: Path, tmp_path: Path) -> None:
    def arguments(output: str) -> list[str]:
        settings = {"rows_per_file": 4, "num_workers": 1, "threads_per_worker": 1}
        named = [word for name, value in settings.items() for word in (f"--label.{name}", str(value))]
        source = ["--checkpoint", str(data / "checkpoint"), "--images", str(data / "set" / "images")]
        return [*source, "--output", str(tmp_path / output), *named]

    job = Job("label", arguments("clean"), tmp_path)
    started = seconds_until(job, lambda: any((tmp_path / "clean").glob("labels/*.parquet")))
    assert job.end().code == 0

    def lose_half() -> None:
        for path in sorted((tmp_path / "run" / "labels").iterdir())[::2]:
            path.unlink()

    killed_again_and_again("label", arguments("run"), tmp_path, started + _SECONDS_OF_WORK, lose_half)
    last = Job("label", arguments("run"), tmp_path).end()
    assert (last.code, last.err) == (0, ""), last
    assert _rows(tmp_path / "run") == _rows(tmp_path / "clean")
    summary = verify(VerifyRun(str(tmp_path / "run")))
    assert (summary.passed, summary.unsealed) == (True, 0)


def _rows(run: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((run / "labels").glob("*.parquet"))]
    return pa.concat_tables(tables).sort_by("image_id").to_pylist()


def test_training_killed_again_and_again_ends_as_undisturbed(data: Path, tmp_path: Path) -> None:
    def arguments(output: str, steps: int) -> list[str]:
        settings = ["--config", str(data / "train.yaml"), "--train.steps", str(steps)]
        return [*settings, "--output", str(tmp_path / output)]

    probe = Job("train", arguments("probe", 100_000), tmp_path)
    started = seconds_until(probe, lambda: "step " in probe.out)
    time.sleep(5)
    done = int(re.findall(r"step (\d+)/", probe.out)[-1])
    check_end(probe.end(signal.SIGTERM), signal.SIGTERM)
    steps = 25 * (1 + int(done / 5 * _SECONDS_OF_WORK * _ROUNDS / 50))  # what the rounds can do, and more

    def too_few() -> None:
        raise AssertionError("the run was over before the last signal")

    killed_again_and_again("train", arguments("run", steps), tmp_path, started + _SECONDS_OF_WORK, too_few)
    last = Job("train", arguments("run", steps), tmp_path).end()
    assert (last.code, last.err) == (0, ""), last
    clean = Job("train", arguments("clean", steps), tmp_path).end()
    assert clean.code == 0, clean.err
    ours, theirs = (load_checkpoint(str(tmp_path / name / "checkpoints" / "last"))[1] for name in ("run", "clean"))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == steps


def test_a_signal_before_during_and_after_the_start_of_ray(data: Path, tmp_path: Path) -> None:
    """One for each second of a start."""
    arguments = ["--config", str(data / "train.yaml"), "--train.steps", "100000", "--output", str(tmp_path / "run")]
    for index in range(14):
        number = _SIGNALS[index % 2]
        job = Job("train", arguments, tmp_path)
        time.sleep(0.7 + index)
        ended = job.end(number)
        print(index, ended.code, f"{ended.seconds:.1f} s", ended.err.strip(), flush=True)
        check_end(ended, number)
