"""CPUs and cores that this process may use."""

import os

from pipelines.cluster.cpu_quota import cpu_quota


def usable_cpus() -> int:
    """CPUs that this process may run on, or as many as its container's quota keeps busy."""
    return _within_quota(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))


def physical_cores() -> int:
    """Cores under the CPUs that this process may run on, or as many as its container's quota keeps busy: hyper-threads
    of one core count once.

    Convolutions run slower with a thread on each hyper-thread than with one on each core.
    """
    if not hasattr(os, "sched_getaffinity"):
        return usable_cpus()
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                siblings.add(file.read().strip())
        except OSError:  # not shown in some containers
            siblings.add(str(cpu))
    return _within_quota(len(siblings))


def _within_quota(cpus: int) -> int:
    quota = cpu_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))
