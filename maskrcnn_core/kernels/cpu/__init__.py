"""Loops over feature maps on a CPU, compiled by Numba when they are first called.

torch's operators make one pass over memory each; these loops do several steps on the values while they are in
registers. All have plain counterparts, which the tests hold them to and which work where Numba is missing.
`availability` says whether they run and on how many threads, `vector_lanes` makes the vector instructions.
"""
