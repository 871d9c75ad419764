"""Variables of processes that compute: how glibc keeps the memory of tensors, and how long threads wait awake."""

import os

from maskrcnn_core.thread_waiting import limit_spinning

# Feature maps are tens of megabytes and live for one layer. By default each goes back to the system at once and the
# next one is faulted in page by page; huge pages and one heap that keeps what it has spare that time. (One arena, since
# Ray runs training in a thread, and glibc's heaps of other threads than the main one are small and given back.)
_TENSOR_MEMORY = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 1024**3),
    "MALLOC_TOP_PAD_": str(256 * 1024**2),
    "MALLOC_ARENA_MAX": "1",
}


def computing_environment() -> dict[str, str]:
    """The variables; what the user has chosen for the job holds for its processes as well."""
    waiting = {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ}
    limit_spinning(waiting)
    return {**_TENSOR_MEMORY, **waiting}
