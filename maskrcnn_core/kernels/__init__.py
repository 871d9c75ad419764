"""Computation that torch has no fast operator for: Triton kernels on a GPU, loops by Numba on a CPU."""
