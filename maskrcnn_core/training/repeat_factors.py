"""Repeat-factor sampling: images with rare categories are shown more often (Gupta et al., LVIS, CVPR 2019, appendix).

f(c) = share of the images that have category c
r(c) = max(1, sqrt(threshold / f(c)))
r(image) = the largest r(c) of its categories; 1 for an image without an object
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.data.coco.dataset import CocoDataset


def repeat_factors(categories: Sequence[Collection[int]], threshold: float) -> NDArray[np.float64]:
    """How often each image is shown in an epoch, on average: [images], at least 1.

    Args:
        categories: of each image's objects.
        threshold: share of images below which a category counts as rare; 0 = none.
    """
    # In how many images each category is, however many objects of it an image has.
    counts: dict[int, int] = {}
    for present in categories:
        for category in set(present):
            counts[category] = counts.get(category, 0) + 1
    # r(c), then the largest of an image's own.
    of_category = {
        category: max(1.0, (threshold * len(categories) / count) ** 0.5) for category, count in counts.items()
    }
    return np.array([max((of_category[category] for category in present), default=1.0) for present in categories])


def dataset_repeat_factors(dataset: CocoDataset, threshold: float) -> NDArray[np.float64] | None:
    """`repeat_factors` of annotated images, crowds left out; None where the threshold is 0."""
    if threshold == 0:
        return None
    return repeat_factors(
        [{item.category_id for item in image.objects if not item.crowd} for image in dataset.images], threshold
    )
