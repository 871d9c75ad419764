"""Where chunks begin and end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.labels.chunk_plan import ChunkPlan


def spans(plan: ChunkPlan, *parts: int) -> list[tuple[int, int, int]]:
    return [(chunk.part, chunk.start, chunk.stop) for chunk in plan.chunks(parts)]


def test_chunks_do_not_cross_parts() -> None:
    assert spans(ChunkPlan(4), 5, 0, 4) == [(0, 0, 4), (0, 4, 5), (2, 0, 4)]
    assert spans(ChunkPlan(4)) == []


def test_the_last_images_lie_in_small_chunks() -> None:
    assert spans(ChunkPlan(4, 1, 2), 10) == [(0, 0, 4), (0, 4, 8), (0, 8, 9), (0, 9, 10)]
    assert spans(ChunkPlan(4, 2, 5), 4, 6) == [(0, 0, 4), (1, 0, 4), (1, 4, 6)]  # a chunk may reach into them
    assert spans(ChunkPlan(4, 2, 100), 3, 3) == [(0, 0, 2), (0, 2, 3), (1, 0, 2), (1, 2, 3)]


@given(
    st.lists(st.integers(0, 30), max_size=5),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 60),
)
def test_each_image_lies_in_one_chunk(parts: list[int], rows: int, small: int, images: int) -> None:
    for part, total in enumerate(parts):
        covered = [
            row
            for p, start, stop in spans(ChunkPlan(rows, small, images), *parts)
            if p == part
            for row in range(start, stop)
        ]
        assert covered == list(range(total))


@pytest.mark.parametrize("sizes", [(0,), (-1,), (4, 0, 2), (4, 1, -1)])
def test_chunks_of_nothing_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        ChunkPlan(*sizes)
