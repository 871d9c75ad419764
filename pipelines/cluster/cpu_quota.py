"""How much processor time a container may use: less than the CPUs that it sees, where a quota is set.

Kubernetes' `limits.cpu`, Docker's `--cpus` and Slurm set a quota of the control group (cgroup). The process still sees
every CPU of the machine, and as many threads as that would be stopped again and again in the middle of their work.
"""

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def cpu_quota(root: Path = _ROOT, own_groups: Path = _OWN_GROUPS) -> float | None:
    """CPUs that this process's control group, or one above it, may keep busy; None = no limit.

    Args:
        root: where the control groups are mounted, of version 1 or 2.
        own_groups: which of them this process is in (`/proc/self/cgroup`).
    """
    quotas = [
        quota
        for mount, group in _hierarchies(root, own_groups)
        for folder in _upwards(mount, group)
        if (quota := _quota_of(folder)) is not None
    ]
    return min(quotas, default=None)


def _hierarchies(root: Path, own_groups: Path) -> list[tuple[Path, str]]:
    """The mounted trees of groups that can hold a quota, each with this process's place in it."""
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:
        lines = []
    entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    trees = [(root, path) for _, names, path in entries if not names]
    trees += [(root / names, path) for _, names, path in entries if "cpu" in names.split(",")]
    trees += [(root / "cpu", path) for _, names, path in entries if "cpu" in names.split(",")]
    # A container sees its own group as the root, whatever the name that the machine has for it.
    return [*trees, (root, "/"), (root / "cpu", "/")]


def _upwards(mount: Path, group: str) -> list[Path]:
    """The folders from the root of a tree to a group in it; those that are not there hold no quota."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _quota_of(folder: Path) -> float | None:
    """CPUs of one group by `cpu.max` (version 2) or `cpu.cfs_quota_us` (version 1), which count microseconds of
    processor time in each period."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        share = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # not there, or "max"
        return None
    return share if share > 0 else None  # version 1 writes -1 for none
