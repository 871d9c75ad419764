"""A short fuzz; `make fuzz` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_damaged_files_are_rows_drops_or_lines() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "400", "--processes", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert ", 0 findings" in done.stdout.splitlines()[-1]
