"""Boxes that stand for those of a data set."""
