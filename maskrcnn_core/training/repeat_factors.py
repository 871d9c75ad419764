"""Repeat-factor sampling: images with rare categories are shown more often (Gupta et al., LVIS, CVPR 2019, appendix).

f(c) = share of the images that have category c
r(c) = max(1, sqrt(threshold / f(c)))
r(image) = the largest r(c) of its categories; 1 for an image without an object
"""

from collections.abc import Iterable

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
    keys = [np.unique(images * (1 << 32) + categories) for images, categories in objects]
    pairs = np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.int64)
    images, categories = np.divmod(pairs, 1 << 32)
    # In how many images each category is, then r(c), then the largest of an image's own.
    _, rows, counts = np.unique(categories, return_inverse=True, return_counts=True)
    of_category = np.array([max(1.0, (threshold * num_images / count) ** 0.5) for count in counts.tolist()], np.float64)
    factors = np.ones(num_images)
    np.maximum.at(factors, images, of_category[rows])
    return factors


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
