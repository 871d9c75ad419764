"""Random damage to everything that is read: annotations, results, images, labels, run folders, checkpoints.

`python -m tests.fuzz` runs it; whatever comes in, what comes out is a row, a counted drop or one line.
"""
