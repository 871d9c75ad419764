"""Other processes that want the same cores, as there are on most machines that people share."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Ends by itself where this process is killed.
_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    sum(range(100_000))
"""


@contextmanager
def busy_neighbours(number: int) -> Iterator[None]:
    """So many processes that compute all the time, while the block runs."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", _BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()  # jobs block the signals that end them, and children inherit that
        for process in processes:
            process.wait()
