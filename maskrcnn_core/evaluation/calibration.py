"""Whether a score is the probability of being right: reliability bins and expected calibration error.

After Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2, with a detection being right if
COCO's matching gives it an object at IoU 0.50. Detections on crowd regions are left out.
"""

import numpy as np

from maskrcnn_core.evaluation.analysis import Calibration, ReliabilityBin
from maskrcnn_core.evaluation.matches import FOREGROUND, IGNORED, RIGHT, Matches


def calibrate(matches: Matches, bins: int = 10) -> Calibration:
    """Calibration of all categories together; errors are 0 without detections.

    Args:
        matches: of all images.
        bins: equally wide, from 0 to 1.
    """
    counted = matches.kind != IGNORED
    scores, right = matches.score[counted], matches.kind[counted] == RIGHT
    edges = np.linspace(0.0, 1.0, bins + 1)
    indices = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, bins - 1)
    reliability = []
    for index in range(bins):
        own = indices == index
        count = int(own.sum())
        mean, precision = (float(scores[own].mean()), float(right[own].mean())) if count else (0.0, 0.0)
        reliability.append(ReliabilityBin(float(edges[index]), float(edges[index + 1]), count, mean, precision))
    gaps = [abs(one.mean_score - one.precision) for one in reliability]
    total = max(len(scores), 1)
    return Calibration(
        iou=FOREGROUND,
        ece=float(sum(one.count * gap for one, gap in zip(reliability, gaps, strict=True)) / total),
        mce=max((gap for one, gap in zip(reliability, gaps, strict=True) if one.count), default=0.0),
        bins=tuple(reliability),
    )
