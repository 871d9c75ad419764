"""Tests with a process of their own: what they leave behind, or how they end it, is nobody else's.

The marker `alone` asks for it. tracemalloc is such a case: CPython 3.11 crashes where it is stopped while a thread of a
library waits to enter Python, so a process in which it was started is left without stopping it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_IS_ALONE = "MASKRCNN_TEST_ALONE"
_LONGEST_SECONDS = 300
_COMMAND = "import os, sys, pytest; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"


def run_alone(test: pytest.Function) -> bool:
    """Run a test in a process of its own, if it asks for one and this is not that process; returns whether it did."""
    if test.get_closest_marker("alone") is None or _IS_ALONE in os.environ:
        return False
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, "-q", "-p", "no:cacheprovider", "--color=no", "-m", "", test.nodeid],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, _IS_ALONE: "1"},
        capture_output=True,
        text=True,
        timeout=_LONGEST_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-12000:]}{done.stderr[-2000:]}"
    assert "1 passed" in done.stdout
    return True
