"""Processes that stand still."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipelines.cluster.config import ClusterConfig
from pipelines.labelling import execution, signs_of_life
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.progress import LabelProgress
from pipelines.labelling.run import label
from pipelines.labelling.signs_of_life import ProcessId, SignsOfLife, _start_of, end_process, longest_silence
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.fake_detector import FAKE, write_images
from tests.processes import descendants

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_gives_no_sign_is_silent_once() -> None:
    clock = Clock()
    signs: SignsOfLife[str] = SignsOfLife(clock)
    for name in ("a", "b", "c"):
        signs.hear(name)
    for second in range(5, 31, 5):
        clock.now = second
        signs.hear("a")
        if second < 15:
            signs.hear("b")
        if second == 20:
            signs.forget("c")
        assert signs.silent(20.0) == []
    clock.now = 31.0
    assert signs.silent(20.0) == ["b"]
    assert signs.silent(20.0) == []


def test_who_stood_still_itself_takes_nobody_for_silent() -> None:
    clock = Clock()
    signs: SignsOfLife[str] = SignsOfLife(clock)
    signs.hear("a")
    assert signs.silent(20.0) == []
    clock.now = 500.0
    assert signs.silent(20.0) == []  # the job was suspended, and the others with it
    for clock.now in (505.0, 510.0, 515.0, 520.0):
        assert signs.silent(20.0) == []
    clock.now = 521.0
    assert signs.silent(20.0) == ["a"]


def test_signs_go_on_after_one_that_did_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs_of_life, "SIGN_SECONDS", 0.01)
    tried, arrived = [], threading.Event()

    def sign() -> None:
        tried.append(1)
        if len(tried) < 3:
            raise ConnectionError
        arrived.set()

    signs_of_life.give_signs(sign)
    assert arrived.wait(30)


def test_the_limit_follows_that_of_an_image() -> None:
    assert longest_silence(LabelConfig(image_timeout=0.0)) is None
    assert longest_silence(LabelConfig(image_timeout=1.0)) == 20.0
    assert longest_silence(LabelConfig(image_timeout=60.0)) == 60.0
    assert longest_silence(LabelConfig()) == 120.0


def test_only_the_process_that_was_meant_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = ProcessId("", process.pid, _start_of(process.pid))
        assert found.started
        os.kill(process.pid, signal.SIGSTOP)
        end_process(replace(found, started="another"))
        assert process.poll() is None
        end_process(found)
        assert process.wait(30) == -signal.SIGKILL
        end_process(found)  # which is no more


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=3, object_store_memory=100 * 2**20)
        yield cluster
    finally:
        cluster.shutdown()


def _workers() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if "RayWorker" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.ray
def test_a_stopped_worker_of_a_cluster_is_replaced(
    tmp_path: Path, two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "longest_silence", lambda label: 20.0)
    write_images(tmp_path / "images", 40)
    stopped: list[int] = []

    def stop_one(progress: LabelProgress) -> None:
        if not stopped and progress.done and (found := _workers()):
            stopped.append(found[0])
            os.kill(found[0], signal.SIGSTOP)

    run = LabelRun(
        "slow",
        str(tmp_path / "images"),
        str(tmp_path / "out"),
        label=LabelConfig(num_workers=2, threads_per_worker=2, rows_per_file=4),
        cluster=ClusterConfig(address=two_nodes.address),
    )
    summary = label(run, stop_one, detector=FAKE)
    assert len(stopped) == 1
    assert (summary.images, summary.statuses) == (40, {"ok": 40})
    assert verify(VerifyRun(run.output)).passed
