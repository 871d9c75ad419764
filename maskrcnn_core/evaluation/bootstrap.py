"""How far AP would move with other images: the bootstrap over images (Efron, 1979), for one run and for two.

A sample draws as many images as there are, each as often as it falls, with all its objects and detections. Both runs of
a comparison see the same samples, so that what makes images hard for both cancels out.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from maskrcnn_core.evaluation.analysis import (
    CategoryDifference,
    ConfidenceInterval,
    RunDifference,
)
from maskrcnn_core.evaluation.match_precision import Ranking, average_precision
from maskrcnn_core.evaluation.scoring_states import FloatArray

LEVEL = 0.95


def ap_interval(rankings: Sequence[Ranking], images: int, samples: int, seed: int = 0) -> ConfidenceInterval:
    """Interval of the mean AP over categories with objects.

    Args:
        rankings: of each category, at all thresholds.
        images: how many images there are, also those with nothing in them.
        samples: how many to draw.
        seed: of the samples.
    """
    values = [_mean(_category_aps(rankings, weights)) for weights in _samples(images, samples, seed)]
    return _interval(_mean(_category_aps(rankings, None)), np.array(values))


def compare_runs(
    first: Sequence[Ranking],
    second: Sequence[Ranking],
    categories: Sequence[tuple[int, str]],
    images: int,
    samples: int,
    seed: int = 0,
) -> RunDifference:
    """Two runs on the same images.

    Args:
        first, second: rankings of each category.
        categories: id and name of each.
        images, samples, seed: as of `ap_interval`.
    """
    pairs = [
        (_category_aps(first, weights), _category_aps(second, weights)) for weights in _samples(images, samples, seed)
    ]
    means = np.array([_mean(two) - _mean(one) for one, two in pairs])
    one, two = _category_aps(first, None), _category_aps(second, None)
    differences = []
    for index, (category_id, name) in enumerate(categories):
        if one[index] == -1:
            continue
        # A sample may lack the category; the others tell how it varies.
        drawn = np.array([b[index] - a[index] for a, b in pairs if a[index] > -1])
        interval = _interval(float(two[index] - one[index]), drawn)
        differences.append(
            CategoryDifference(category_id, name, float(one[index]), float(two[index]), interval, _p_value(drawn))
        )
    return RunDifference(
        _mean(one), _mean(two), _interval(_mean(two) - _mean(one), means), _p_value(means), tuple(differences)
    )


def _samples(images: int, samples: int, seed: int) -> Iterator[FloatArray]:
    random = np.random.default_rng(seed)
    for _ in range(samples if images else 0):
        yield random.multinomial(images, np.full(images, 1 / images)).astype(np.float64)


def _category_aps(rankings: Sequence[Ranking], weights: FloatArray | None) -> FloatArray:
    return np.array([average_precision(ranking, weights).mean() for ranking in rankings])


def _mean(values: FloatArray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _interval(value: float, drawn: npt.NDArray[np.float64]) -> ConfidenceInterval:
    if not drawn.size:
        return ConfidenceInterval(value, value, value, LEVEL, 0, 0.0)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return ConfidenceInterval(value, float(low), float(high), LEVEL, len(drawn), float(drawn.std()))


def _p_value(drawn: npt.NDArray[np.float64]) -> float:
    """Twice the share of samples on the rarer side of zero, never below what so many samples can tell."""
    if not drawn.size:
        return 1.0
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))
