"""How long OpenMP's threads wait awake."""

import os
import subprocess
import sys

import pytest

from maskrcnn_core.thread_waiting import SPIN_COUNT, limit_spinning


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_has_chosen_stays(chosen: dict[str, str]) -> None:
    environment = dict(chosen)
    limit_spinning(environment)
    assert environment == chosen


@pytest.mark.parametrize("package", ["maskrcnn_core.structures", "pipelines.labelling.worker", "jobs.label"])
def test_it_is_said_before_torch_is_imported(package: str) -> None:
    """torch's OpenMP reads it once, when it is loaded."""
    program = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("at torch", os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Watch())
import {package}
print("at the end", os.environ.get("GOMP_SPINCOUNT"))
"""
    environment = {name: value for name, value in os.environ.items() if name not in SPIN_COUNT}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    count = SPIN_COUNT["GOMP_SPINCOUNT"]
    lines = result.stdout.splitlines()
    assert lines[-1] == f"at the end {count}"
    assert all(line == f"at torch {count}" for line in lines[:-1])
    assert len(lines) == (1 if package == "jobs.label" else 2)
