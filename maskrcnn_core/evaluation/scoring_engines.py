"""The engines that score: pycocotools, the reference, and hotcoco, compiled and equal to it in every bit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from maskrcnn_core.errors import AnnotationError, UserError
from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.scoring_states import ScoringRules, ScoringState
from maskrcnn_core.printable import printable


def match_images(
    rules: ScoringRules, images: Sequence[CocoDict], annotations: Sequence[CocoDict], results: Sequence[CocoDict]
) -> ScoringState:
    """Compare detections with annotated objects.

    Args:
        rules: what all parts share.
        images: entries with `id`, and `width` and `height` where masks are scored.
        annotations: COCO annotations of these images, of the categories of the rules; not changed.
        results: detections in COCO's results format on these images; those of other categories are left out.
    """
    known = frozenset(rules.category_ids)
    results = [result for result in results if result["category_id"] in known]
    # Imported here, so that scoring with one engine does not need the other.
    with engine_errors(rules.iou_type, images):
        if rules.engine == "hotcoco":
            from maskrcnn_core.evaluation.hotcoco_states import match_with_hotcoco

            return match_with_hotcoco(rules, images, annotations, results)
        from maskrcnn_core.evaluation.pycocotools_states import match_with_pycocotools

        return match_with_pycocotools(rules, images, annotations, results)


@contextmanager
def engine_errors(what: str, images: Sequence[CocoDict]) -> Iterator[None]:
    """Whatever an engine raises inside of the block, as an error of ours that says where.

    Entries are clean before an engine sees them, so this is the last resort.

    Raises:
        AnnotationError: in place of anything that is no `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pycocotools raises just that
        ids = [image["id"] for image in images]
        where = f"{len(ids)} images ({min(ids)} to {max(ids)})" if ids else "no images"
        raise AnnotationError(f"scoring {what} of {where}: {printable(str(error))[:300]}") from error
