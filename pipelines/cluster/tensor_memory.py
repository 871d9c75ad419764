"""How glibc keeps the memory of tensors: variables of processes that compute."""

# Feature maps are tens of megabytes and live for one layer. By default each goes back to the system at once and the
# next one is faulted in page by page; huge pages and one heap that keeps what it has spare that time. (One arena, since
# Ray runs training in a thread, and glibc's heaps of other threads than the main one are small and given back.)
TENSOR_MEMORY_ENVIRONMENT = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 1024**3),
    "MALLOC_TOP_PAD_": str(256 * 1024**2),
    "MALLOC_ARENA_MAX": "1",
}
