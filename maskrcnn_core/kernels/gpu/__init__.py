"""Kernels for GPUs, written in Triton, of what torch and torchvision have no fast or waiting-free operator for.

Each has a plain counterpart that computes the same without Triton, which the tests hold it to: `boxes.suppress` and
`model/regions/align.py`. `availability.use_kernels` says which of the two runs.
"""
