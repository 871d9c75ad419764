"""Worker processes of this machine: what kills them, what ends them, and how many there are."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskrcnn_core.errors import ConfigError, UserError
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines.cluster.choice import uses_ray
from pipelines.cluster.config import ClusterConfig
from pipelines.labelling import one_machine, signs_of_life
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.detector_stream import Predicting
from pipelines.labelling.one_machine import OneMachine
from pipelines.labelling.progress import LabelProgress
from pipelines.labelling.run import label
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.fake_detector import FAKE, FakePredictor, describe_fake, write_images
from tests.processes import descendants
from tests.small_detector import save_small_detector

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run_of(tmp_path: Path, checkpoint: str = "good", images: int = 12, **settings: Any) -> LabelRun:
    write_images(tmp_path / "images", images)
    return LabelRun(checkpoint, str(tmp_path / "images"), str(tmp_path / "out"), label=LabelConfig(**settings))


def workers(parent: int | None = None) -> list[int]:
    """Worker processes below a process, this one by default, which other tests may have left processes as well."""
    found = descendants(os.getpid() if parent is None else parent)
    return [process for process in found if b"worker_process" in command_line(process)]


def command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def die_loading(checkpoint: str, settings: PredictorSettings) -> FakePredictor:
    print("out of something", file=sys.stderr, flush=True)
    os._exit(3)


def die_once(checkpoint: str, settings: PredictorSettings) -> Predicting:
    marker = Path(checkpoint).parent / "died"
    if not marker.exists():
        marker.touch()
        os._exit(3)
    return FAKE.load(checkpoint, settings)


def misload(checkpoint: str, settings: PredictorSettings) -> FakePredictor:
    raise UserError("this machine lacks a part")


def err_loading(checkpoint: str, settings: PredictorSettings) -> FakePredictor:
    raise ZeroDivisionError("a fault of the program")


def test_a_run_leaves_no_process_and_no_chatter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    summary = label(run_of(tmp_path, num_workers=2, rows_per_file=2), detector=FAKE, on_note=notes.append)
    assert (summary.images, summary.statuses) == (12, {"ok": 12})
    assert verify(VerifyRun(str(tmp_path / "out"))).passed
    assert not workers()
    assert capfd.readouterr() == ("", "")
    assert notes == ["computing on CPUs of this machine (label.use_gpu auto)"]


def test_a_finished_run_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)
    label(run, detector=FAKE)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert label(run, detector=FAKE).skipped_because_done


def test_a_process_that_is_killed_costs_no_row(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(progress: LabelProgress) -> None:
        if len(killed) < 2 and progress.done and (found := workers()):
            killed.append(found[0])
            os.kill(killed[-1], signal.SIGKILL)

    run = run_of(tmp_path, "slow", images=30, num_workers=2, rows_per_file=5)
    summary = label(run, kill_one, detector=FAKE)
    assert len(killed) == 2
    assert (summary.images, summary.statuses) == (30, {"ok": 30})
    assert verify(VerifyRun(str(tmp_path / "out"))).passed
    assert not workers()


def test_a_process_that_stands_still_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs_of_life, "_LEAST_SILENCE", 12.0)
    stopped: list[int] = []

    def stop_one(progress: LabelProgress) -> None:
        if not stopped and progress.done and (found := workers()):
            stopped.append(found[0])
            os.kill(stopped[-1], signal.SIGSTOP)

    run = run_of(tmp_path, "slow", images=30, num_workers=2, rows_per_file=5, image_timeout=1.0)
    summary = label(run, stop_one, detector=FAKE)
    assert len(stopped) == 1
    assert (summary.images, summary.statuses) == (30, {"ok": 30})
    assert verify(VerifyRun(str(tmp_path / "out"))).passed
    assert not workers()


@pytest.mark.parametrize(
    ("load", "expected", "text"),
    [
        (die_loading, UserError, r"lost 3 times while it loaded: it ended with exit code 3, its last words: out of s"),
        (misload, UserError, "^this machine lacks a part$"),
        (err_loading, RuntimeError, "(?s)a worker failed:.*err_loading.*ZeroDivisionError: a fault of the program"),
    ],
)
def test_a_detector_that_cannot_be_loaded_ends_the_run(
    tmp_path: Path, load: Callable[..., Any], expected: type[Exception], text: str
) -> None:
    with pytest.raises(expected, match=text):
        label(run_of(tmp_path), detector=Detector(load, describe_fake))
    assert not workers()
    assert label(run_of(tmp_path), detector=FAKE).statuses == {"ok": 12}


_ENDLESS = """
import sys
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.run import label
from tests.pipelines.fake_detector import FAKE
# Without a guard: a script that labels is imported by none of its processes.
label(LabelRun("slow", sys.argv[1], sys.argv[2], label=LabelConfig(num_workers=2, rows_per_file=4)), detector=FAKE)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_processes_end_with_the_one_that_started_them(tmp_path: Path, number: signal.Signals) -> None:
    run = run_of(tmp_path, "slow", images=40, rows_per_file=4)
    script = tmp_path / "script.py"
    script.write_text(_ENDLESS)
    command = [sys.executable, str(script), run.images, run.output]
    parent = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    wait_for(lambda: list((tmp_path / "out" / "labels").glob("*.parquet")))
    children = workers(parent.pid)
    assert len(children) == 2
    parent.send_signal(number)
    parent.communicate()
    wait_for(lambda: not any(is_alive(child) for child in children))
    summary = label(run, detector=FAKE)
    assert (summary.images, summary.statuses) == (40, {"ok": 40})
    assert summary.labelled_now < 40
    assert verify(VerifyRun(run.output)).passed


_WITHOUT_TORCH = """
import sys
from jobs.label import main
code = main(sys.argv[1:])
sys.exit(code or ("torch" in sys.modules and "torch was imported"))
"""


def test_the_parent_of_a_new_run_needs_no_torch(tmp_path: Path) -> None:
    run = run_of(tmp_path, str(save_small_detector(tmp_path / "checkpoint")), images=2)
    command = ["--checkpoint", run.checkpoint, "--images", run.images, "--output", run.output]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, *command, "--label.num_workers", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The processes' detector has the fingerprint that one of this process would have.
    assert label(run).skipped_because_done


def test_a_detector_whose_first_process_dies_is_described_by_the_parent(tmp_path: Path) -> None:
    run = run_of(tmp_path, str(tmp_path / "good"), images=2)
    summary = label(run, detector=Detector(die_once, FAKE.describe))
    assert (tmp_path / "died").exists()
    assert summary.statuses == {"ok": 2}


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_images_that_hang_become_rows(tmp_path: Path) -> None:
    run = run_of(tmp_path, "hangs", images=9, image_timeout=1.0)
    Image.new("RGB", (13, 8)).save(tmp_path / "images" / "004.png")
    summary = label(run, detector=FAKE)
    assert summary.statuses == {"ok": 8, "failed": 1}


# ---- how many processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "processes", "threads"),
    [
        ({}, 1, 12),
        ({"num_workers": 3}, 3, 4),
        ({"threads_per_worker": 5}, 2, 5),
        ({"num_workers": 2, "threads_per_worker": 1}, 2, 1),
        ({"num_workers": 30}, 30, 1),
    ],
)
def test_processes_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], processes: int, threads: int
) -> None:
    monkeypatch.setattr(one_machine, "physical_cores", lambda: 12)
    machine = OneMachine(LabelRun("c", "i", "o", label=LabelConfig(**settings)), lambda _: None)
    shape = machine.first_shape()
    assert (shape.processes, shape.threads) == (processes, threads)


@pytest.mark.parametrize(
    ("visible", "settings", "environments"),
    [
        (["0", "1"], {}, ["0", "1"]),
        (["3", "5", "7"], {"num_workers": 2}, ["3", "5"]),
        (["GPU-8ab"], {"use_gpu": True}, ["GPU-8ab"]),
        (["0", "1"], {"use_gpu": False}, [None]),
    ],
)
def test_each_process_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: list[str], settings: dict[str, Any], environments: list[str | None]
) -> None:
    monkeypatch.setattr(one_machine, "_visible_gpus", lambda: visible)
    monkeypatch.setattr(one_machine, "physical_cores", lambda: 2)
    machine = OneMachine(LabelRun("c", "i", "o", label=LabelConfig(**settings)), lambda _: None)
    found = [machine.environment(place).get("CUDA_VISIBLE_DEVICES") for place in range(machine.first_shape().processes)]
    assert found == environments


def test_more_workers_than_gpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"label.use_gpu: 2 workers need a GPU each, this machine has 0"):
        label(run_of(tmp_path, use_gpu=True, num_workers=2), detector=FAKE)
    assert not (tmp_path / "out").exists()


# ---- Ray or not ------------------------------------------------------------------------------------------------------


def test_ray_is_used_where_a_cluster_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses_ray(ClusterConfig())
    assert uses_ray(ClusterConfig(ray=True))
    assert uses_ray(ClusterConfig(address="head:6379"))
    assert uses_ray(ClusterConfig(num_cpus=4))
    assert not uses_ray(ClusterConfig(num_cpus=4, ray=False))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert uses_ray(ClusterConfig())
    assert not uses_ray(ClusterConfig(ray=False))
