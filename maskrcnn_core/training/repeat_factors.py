"""Repeat-factor sampling: images with rare categories are shown more often (Gupta et al., LVIS, CVPR 2019, appendix).

f(c) = share of the images that have category c
r(c) = max(1, sqrt(threshold / f(c)))
r(image) = the largest r(c) of its categories; 1 for an image without an object
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.data.coco.dataset import CocoDataset


def repeat_factors(
    objects: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], num_images: int, threshold: float
) -> NDArray[np.float64]:
    """How often each image is shown in an epoch, on average: [images], at least 1.

    Args:
        objects: some at a time, the position of each one's image and its category: [objects] twice.
        num_images: of the data set, with and without objects.
        threshold: share of images below which a category counts as rare; 0 = none.
    """
    # Pairs of an image and a category that it has, as one number each, however many objects of it there are.
    some = [_different(np.sort((images << 32) | categories)) for images, categories in objects]
    pairs = np.concatenate(some) if some else np.zeros(0, np.int64)
    del some  # there may be a hundred million
    pairs.sort()
    pairs = _different(pairs)
    factors = np.ones(num_images)
    if not len(pairs):
        return factors
    # In how many images each category is, then r(c).
    categories = (pairs & 0xFFFFFFFF).astype(np.int32)
    known = _different(np.sort(categories))
    rows = np.searchsorted(known, categories)
    counts = np.bincount(rows).tolist()
    of_category = np.array([max(1.0, (threshold * num_images / count) ** 0.5) for count in counts])
    # The largest of an image's own: its pairs are neighbours.
    images = pairs >> 32
    first = np.flatnonzero(np.diff(images, prepend=-1))
    factors[images[first]] = np.maximum.reduceat(of_category[rows], first)
    return factors


def _different(ordered: NDArray[Any]) -> NDArray[Any]:
    """Each value of an ordered array once."""
    if not len(ordered):
        return ordered
    once: NDArray[Any] = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return once


def dataset_repeat_factors(dataset: CocoDataset, threshold: float) -> NDArray[np.float64] | None:
    """`repeat_factors` of annotated images, crowds left out; None where the threshold is 0."""
    if threshold == 0:
        return None
    known = ((images, batch.crowds, batch.category_ids.astype(np.int64)) for images, batch in dataset.objects())
    objects = ((images[~crowds], categories[~crowds]) for images, crowds, categories in known)
    # A category may have an id below 0; as one number with its image it must not.
    return repeat_factors(
        ((images, categories & 0xFFFFFFFF) for images, categories in objects), len(dataset.images), threshold
    )
