"""Labelling and training on a cluster that has no machine before it is asked for one: `growing_cluster_tests`, in a
process of its own, as a command of a user is.

Ray makes tokens the rule for a process that has started a cluster here, and keeps to it in its compiled part: machines
of a later cluster without tokens could not reach that process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.ray
@pytest.mark.slow  # a cluster of its own, whose machines take seconds to start
def test_a_cluster_from_nothing() -> None:
    tests = Path(__file__).with_name("growing_cluster_tests.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", str(tests)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    assert "4 passed" in done.stdout.splitlines()[-1]
