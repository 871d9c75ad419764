"""Control groups of both versions as a container and a machine show them."""

import os
from pathlib import Path

import pytest

from pipelines.cluster import cpus
from pipelines.cluster.cpu_quota import cpu_quota


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "", None),
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "250000 100000\n"}, "0::/\n", 2.5),  # a container, which is the root of what it sees
        ({"cpu.max": "250000 100000\n"}, "0::/../../pod/other\n", 2.5),
        ({"job/cpu.max": "800000 100000\n"}, "0::/job/step\n", 8.0),  # of a group above its own
        ({"job/cpu.max": "800000 100000\n", "job/step/cpu.max": "150000 50000\n"}, "0::/job/step\n", 3.0),
        ({"job/cpu.max": "100000 100000\n", "job/step/cpu.max": "max 100000\n"}, "0::/job/step\n", 1.0),
        ({"other/cpu.max": "100000 100000\n"}, "0::/job\n", None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/\n", None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/docker/1\n", 0.5),
        (
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "600000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            "9:memory:/b\n4:cpu,cpuacct:/a\n0::/b\n",
            6.0,
        ),
        ({"cpu.max": "nonsense"}, "0::/\nno line", None),
        ({"cpu.max": "100000 0"}, "0::/\n", None),
    ],
)
def test_the_smallest_quota_of_the_groups_above_a_process(
    tmp_path: Path, files: dict[str, str], own: str, expected: float | None
) -> None:
    write(tmp_path / "cgroup", files)
    write(tmp_path, {"own": own})
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "own") == expected


def test_no_control_groups_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "neither") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 6), (0.3, 1), (2.9, 2), (64.0, 6)])
def test_cpus_and_cores_are_those_that_a_quota_keeps_busy(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10_000, 10_006)))
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert cpus.usable_cpus() == expected
    assert cpus.physical_cores() == expected  # no file tells that two of these are one core
