"""Which processes a process has started."""

import contextlib
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """The process ids of its children, of theirs, and so on."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []
    children = []
    for thread in threads:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends has handed them on
            children += [int(child) for child in (thread / "children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]
