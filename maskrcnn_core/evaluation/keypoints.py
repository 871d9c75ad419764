"""What COCO's keypoint scoring (object keypoint similarity, OKS) takes from annotations and label records.

Only categories that have keypoints are scored, so that a file of 80 categories with keypoints of persons gives the
numbers of its persons. An object without a visible keypoint is neither to be found nor wrong to find.
"""

from collections.abc import Iterable, Mapping, Sequence

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.match_counts import FoundFacts

MAX_DETECTIONS = 20
"""Best detections of an image and category that count (COCO's number for keypoints)."""

_NUMBER_WITH_SIGMAS = 17  # COCO's of a person, whose sigmas the engines know


def keypoint_categories(categories: Iterable[CocoDict]) -> dict[int, int]:
    """Id of each category of an annotation file that has keypoints -> how many."""
    return {category["id"]: len(category["keypoints"]) for category in categories if _lists_any(category)}


def _lists_any(category: Mapping[str, object]) -> bool:
    names = category.get("keypoints")
    return isinstance(names, list) and len(names) > 0


def reason_without_keypoints(
    categories: Mapping[int, int], detected: FoundFacts, sigmas: Sequence[float] | None
) -> tuple[bool, str | None]:
    """Whether there are keypoints to score, and why they cannot be.

    Args:
        categories: number of keypoints by category id, see `keypoint_categories`.
        detected: counts of the detections.
        sigmas: as `evaluate_coco`.

    Returns:
        True and None: score them. False and a reason: one side has them. False and None: neither has any.

    Raises:
        ConfigError: sigmas that do not fit the number of keypoints.
    """
    if not categories:
        return False, "no category of the annotations lists keypoints" if detected.any_keypoints else None
    numbers = set(categories.values())
    if len(numbers) > 1:
        return False, f"the categories have different numbers of keypoints ({', '.join(map(str, sorted(numbers)))})"
    (number,) = numbers
    if sigmas is None and number != _NUMBER_WITH_SIGMAS:
        return (
            False,
            f"the annotations have {number} keypoints, and only for COCO's 17 there are known sigmas; give yours",
        )
    if sigmas is not None and len(sigmas) != number:
        raise ConfigError(
            f"keypoint sigmas: got {len(sigmas)} numbers, expected one for each of the {number} keypoints"
        )
    if detected.keypoint_numbers.get(0):
        return False, f"{detected.keypoint_numbers[0]} detections of categories with keypoints have none"
    if others := set(detected.keypoint_numbers) - {number}:
        return False, f"detections have {min(others)} keypoints, the annotations {number}"
    return True, None


def keypoint_objects(annotations: Iterable[CocoDict], categories: Mapping[int, int]) -> list[CocoDict]:
    """The annotations of categories with keypoints, each with the fields that the engines read.

    Args:
        annotations: clean COCO annotations.
        categories: number of keypoints by category id.
    """
    return [
        _with_keypoints(annotation, categories[annotation["category_id"]])
        for annotation in annotations
        if annotation["category_id"] in categories
    ]


def _with_keypoints(annotation: CocoDict, number: int) -> CocoDict:
    points = annotation.get("keypoints") or [0] * (3 * number)
    visible = sum(visibility > 0 for visibility in points[2::3])
    return {"num_keypoints": visible, **annotation, "keypoints": points}
