"""What the benchmark of labelling does on a GPU, beside a fake nvidia-smi and with fakes in place of the ways."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.benchmark import main
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines.benchmarks import labelling
from pipelines.benchmarks.labelling import _busy_share, _gpu_watched
from pipelines.labelling.config import LabelRun

FAKE = """#!{python}
import os, subprocess, sys, time
open({note!r}, "w").write(str(os.getpid()) + " " + " ".join(sys.argv[1:]))
subprocess.Popen(["sleep", "600"])  # holds the pipe open, should it be left behind
for busy in {samples}:
    print(busy, flush=True)
open({note!r} + ".said", "w")
time.sleep(600)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[object]], Path]:
    """Puts an nvidia-smi that says this on PATH; returns the file in which it notes its id and arguments."""

    def install(samples: list[object]) -> Path:
        note = tmp_path / "note"
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(FAKE.format(python=sys.executable, note=str(note), samples=samples))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return note

    return install


def wait_for(file: Path) -> None:
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_gpu_is_watched_from_its_first_work_to_its_last(fake: Callable[[list[object]], Path]) -> None:
    note = fake([0, 0, 80, 0, 100, "[N/A]", 60, 0, 0, 0])
    busy: list[float] = []
    started = time.monotonic()

    def fail_when_all_is_said() -> None:
        with _gpu_watched(busy, True):
            wait_for(Path(f"{note}.said"))
            raise KeyError

    with pytest.raises(KeyError):
        fail_when_all_is_said()
    assert time.monotonic() - started < 60
    assert busy == [0.6]  # of 80, 0, 100, 60
    pid, *arguments = note.read_text().split()
    assert arguments == ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_without_nvidia_smi_or_gpu_nothing_is_said(
    fake: Callable[[list[object]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[float] = []
    note = fake([100])
    with _gpu_watched(busy, False):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with _gpu_watched(busy, True):
        pass
    assert busy == []
    assert not note.exists()


@pytest.mark.parametrize(("lines", "share"), [("", []), ("0\n0\n", []), ("50\n", [0.5]), ("0\n10\n0\n50\n0\n", [0.2])])
def test_share_of_the_time(lines: str, share: list[float]) -> None:
    assert _busy_share(lines) == share


@pytest.mark.parametrize("use_gpu", [True, False])
def test_files_are_repeated_and_the_documented_way_gets_the_first_on_a_gpu(
    use_gpu: bool,
    fake: Callable[[list[object]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake([90])
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.jpg").write_bytes(b"image %d" % index)
    calls: list[list[bytes]] = []
    loaded: list[PredictorSettings] = []
    read: dict[str, list[bytes]] = {}

    def contents(images: str | Path) -> list[bytes]:
        return [file.read_bytes() for file in sorted(Path(images).iterdir())]

    def load(checkpoint: str, settings: PredictorSettings) -> object:
        loaded.append(settings)
        return SimpleNamespace(predict=calls.append)

    def label(run: LabelRun, on_progress: object) -> object:
        read["ours"] = contents(run.images)
        assert run.label.use_gpu == use_gpu
        return SimpleNamespace(labelled_now=300, images_per_second=50.0, waiting_share=0.1, detections=900)

    def documented(run: object, images: Path, output: Path, threads: int) -> float:
        read["documented"] = contents(images)
        return 4.0

    for name, replacement in (("load_predictor", load), ("label", label), ("_documented_way", documented)):
        monkeypatch.setattr(labelling, name, replacement)
    for name in ("imported_predictor", "peer_of", "use_threads"):
        monkeypatch.setattr(labelling, name, lambda *_: 1)
    monkeypatch.setattr(labelling, "_note", lambda points, state: points.append((300, 6.0)))
    monkeypatch.setattr(labelling, "GROUP_SIZE_GPU", 120)
    monkeypatch.setattr(labelling, "machine", lambda device: f"a machine with {device}")
    arguments = ["--images", str(folder), "--num_images", "300", "--rounds", "1", "--threads", "1"]
    arguments += ["--use_gpu", str(use_gpu).lower()]
    assert main(["label", *arguments]) == 0
    expected = [b"image 0", b"image 1", b"image 2"] * 100
    assert read == {"ours": expected, "documented": expected[:128] if use_gpu else expected}
    assert [len(call) for call in calls] == ([120, 120, 120, 60] if use_gpu else [1] * 301)
    assert [image for call in calls[1:] for image in call] == expected
    assert loaded == [PredictorSettings(device="cuda" if use_gpu else "cpu")]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  300 images (3 files, repeated), 1 rounds, medians; 3.0 detections/image"
    assert "  50.00 images/s" in lines[3]
    name = "Ray documentation's way, torchvision" + (", first 128 images" if use_gpu else "")
    assert lines[4].startswith(f"  {name}  {'  32.00' if use_gpu else '  75.00'} images/s")


@pytest.mark.parametrize(("seconds", "best"), [({2: 0.002, 1: 0.0}, 1), ({2: 0.0, 1: 0.002}, 2)])
def test_the_bare_loop_gets_its_best_threads(seconds: dict[int, float], best: int) -> None:
    before = torch.get_num_threads()
    predictor: Any = SimpleNamespace(predict=lambda _: time.sleep(seconds[torch.get_num_threads()]))
    try:
        assert labelling._best_threads(predictor, [b"image"] * 8, 2) == best
    finally:
        torch.set_num_threads(before)
