"""k-means of boxes: clusters that are seen by eye, the mean IoU by a slow loop, and samples of a stream."""

import numpy as np
import pytest

from maskrcnn_core.data.priors import BoxSample, cluster_priors
from maskrcnn_core.errors import AnnotationError


def test_two_heaps_of_sizes_by_eye() -> None:
    sizes = np.array([[10, 10], [12, 10], [100, 50], [100, 54]], np.float64)
    found = cluster_priors(sizes, 2)
    assert found.values.tolist() == [[11, 10], [100, 52]]
    assert found.shares.tolist() == [0.5, 0.5]
    # 10 x 10 in 11 x 10: 10/11; 11 x 10 in 12 x 10: 11/12; 50/52 and 52/54 alike.
    assert found.mean_iou == pytest.approx((10 / 11 + 11 / 12 + 50 / 52 + 52 / 54) / 4)
    assert found.num_boxes == 4


def test_small_boxes_count_as_much_as_large_ones() -> None:
    """By plain distance the two large ones, 40 apart, would be parted first; by IoU the small ones are."""
    sizes = np.array([[4, 4], [16, 16], [400, 400], [440, 440]], np.float64)
    assert cluster_priors(sizes, 3).values.tolist() == [[4, 4], [16, 16], [420, 420]]


def test_whole_boxes_have_places() -> None:
    left, right = np.array([[0.0, 0.0, 0.2, 0.2]]), np.array([[0.8, 0.0, 1.0, 0.2]])
    boxes = np.concatenate([left, left + 0.02, right, right - 0.02])
    found = cluster_priors(boxes, 2)
    assert np.allclose(sorted(found.values.tolist()), [[0.01, 0.01, 0.21, 0.21], [0.79, -0.01, 0.99, 0.19]])


def test_the_mean_iou_is_that_of_a_slow_loop() -> None:
    sizes = np.random.default_rng(0).uniform(5, 200, (60, 2))
    found = cluster_priors(sizes, 4)
    best = []
    for width, height in sizes:
        ious = []
        for across, down in found.values:
            both = min(width, across) * min(height, down)
            ious.append(both / (width * height + across * down - both))
        best.append(max(ious))
    assert found.mean_iou == pytest.approx(sum(best) / len(best))
    assert (np.diff(found.values.prod(axis=1)) >= 0).all()
    assert found.shares.sum() == pytest.approx(1)


def test_the_same_seed_finds_the_same_and_more_priors_fit_better() -> None:
    sizes = np.random.default_rng(1).lognormal(3, 1, (300, 2))
    fits = [cluster_priors(sizes, number, seed=3).mean_iou for number in (1, 2, 5, 9)]
    assert fits == sorted(fits)
    assert cluster_priors(sizes, 5, seed=3).values.tolist() == cluster_priors(sizes, 5, seed=3).values.tolist()


def test_as_many_priors_as_boxes_fit_exactly() -> None:
    sizes = np.array([[1, 1], [2, 1], [1, 2], [9, 9], [9, 9]], np.float64)
    assert cluster_priors(sizes, 4).mean_iou == 1


@pytest.mark.parametrize(
    ("boxes", "number", "said"),
    [
        (np.ones((5, 2)), 2, "1 different boxes"),
        (np.zeros((0, 2)), 1, "0 different boxes"),
        (np.array([[1.0, 0.0]]), 1, "no width or no height"),
        (np.array([[0.5, 0.5, 0.4, 0.6]]), 1, "no width or no height"),
        (np.array([[1.0, np.nan]]), 1, "no width or no height"),
    ],
)
def test_too_few_or_void_boxes_are_refused(boxes: np.ndarray, number: int, said: str) -> None:
    with pytest.raises(AnnotationError, match=said):
        cluster_priors(boxes, number)


def test_a_sample_is_bounded_and_even() -> None:
    sample = BoxSample(500, 0)
    for begin in range(0, 10_000, 100):
        sample.add(np.arange(begin, begin + 100, dtype=np.float64)[:, None])
    assert (sample.seen, sample.rows.shape) == (10_000, (500, 1))
    assert (np.diff(sample.rows[:, 0]) > 0).all()
    assert sample.rows.mean() == pytest.approx(5000, abs=500)


def test_few_boxes_are_all_kept_and_none_is_none() -> None:
    sample = BoxSample(5, 0)
    assert sample.rows.size == 0
    sample.add(np.zeros((0, 2)))
    sample.add(np.ones((3, 2)))
    sample.add(np.zeros((0, 2)))
    assert sample.rows.tolist() == [[1, 1]] * 3
