"""Processes and threads: what is measured decides, and only where it pays."""

import pytest

from pipelines.labelling.progress import Work
from pipelines.labelling.thread_probe import Shape, ThreadProbe

PLENTY = 1_000_000


def measure(probe: ThreadProbe, rate: float, left: int = PLENTY) -> Shape | None:
    """All processes work at a rate (images/s of all) until the probe decides or has seen enough."""
    processes = probe.shape.processes
    for _ in range(10):
        for place in range(processes):
            probe.add(place, Work(images=8, busy=8 * processes / rate))
            if (shape := probe.decide(left)) is not None or probe.is_over:
                return shape
    raise AssertionError("never decides")


def test_processes_are_doubled_as_long_as_that_gains() -> None:
    probe = ThreadProbe(Shape(1, 8), most=100)
    assert measure(probe, 1.0) == Shape(2, 4)
    assert measure(probe, 1.5) == Shape(4, 2)
    assert not probe.is_over
    assert measure(probe, 1.4) == Shape(2, 4)
    assert probe.is_over
    assert probe.findings() == (
        "computing with 2 processes of 4 threads, as measured in images/s "
        "(1 process of 8 threads: 1.0, 2 processes of 4 threads: 1.5, 4 processes of 2 threads: 1.4)"
    )


def test_the_last_doubling_may_be_the_best() -> None:
    probe = ThreadProbe(Shape(1, 2), most=100)
    assert measure(probe, 1.0) == Shape(2, 1)
    assert measure(probe, 1.6) is None
    assert (probe.is_over, probe.shape) == (True, Shape(2, 1))


@pytest.mark.parametrize(("first", "most"), [(Shape(1, 1), 9), (Shape(1, 8), 1), (Shape(4, 2), 7), (Shape(1, 8), 0)])
def test_nothing_is_tried_where_nothing_else_fits(first: Shape, most: int) -> None:
    probe = ThreadProbe(first, most)
    assert probe.is_over
    assert probe.decide(PLENTY) is None
    assert probe.findings() is None


def test_little_that_is_left_is_not_worth_another_detector() -> None:
    probe = ThreadProbe(Shape(1, 2), most=9)
    assert measure(probe, 1.0, left=59) is None
    assert probe.findings() is None


def test_first_groups_and_empty_work_do_not_count() -> None:
    probe = ThreadProbe(Shape(1, 2), most=9)
    probe.add(0, Work(images=8, busy=100.0))  # kernels are loaded
    probe.add(0, Work())
    probe.add(0, Work(images=8, busy=4.0))
    assert probe.decide(PLENTY) is None
    probe.add(0, Work(images=8, busy=4.0))
    assert probe.decide(PLENTY) == Shape(2, 1)
    assert measure(probe, 3.0) is None  # the first shape made 2.0: the slow first group is left out
    assert probe.shape == Shape(2, 1)
