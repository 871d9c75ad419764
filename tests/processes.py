"""Which processes a process has started."""

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """The process ids of its children, of theirs, and so on."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return children + [below for child in children for below in descendants(child)]
