"""What an evaluation knows beyond COCO's 12 numbers, as plain facts: no computing, only what there is and its JSON.

The JSON has the attribute names as keys. Numbers are in full precision; -1 stands where a number is not defined, as in
COCO's own. Each part's module says how it is computed: `curves`, `confusion`, `tide`, `calibration`, `boundary`,
`federated`, `bootstrap`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""The six kinds of Bolya et al., ECCV 2020, section 2.2 (`tide`)."""

SIZES = ("all", "small", "medium", "large")
"""Area ranges, in COCO's order: objects below 32 x 32 pixels are small, from 96 x 96 on large. Keypoints have no
small ones."""


@dataclass(frozen=True)
class BestThreshold:
    """The score from which on to keep detections of a category, for the best F1 at IoU (or OKS) 0.50.

    Attributes:
        score: keep detections with at least this score; -1 where the category has no objects or no detections.
        f1: harmonic mean of precision and recall there.
        precision, recall: there.
    """

    score: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision over recall at one IoU (or OKS) threshold, interpolated as in COCO's scoring.

    Attributes:
        iou: threshold.
        precision: at the recalls 0, 0.01 .. 1 (101 numbers); 0 at recalls that are not reached.
        scores: the lowest score that is needed for each recall; 0 where not reached.
    """

    iou: float
    precision: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class CategoryDetails:
    """One category of the annotation file.

    Attributes:
        id, name: as in the annotation file.
        objects: annotated objects, crowd regions (and, of keypoints, persons without any) not counted.
        detections: that count: the best 100 (keypoints: 20) of an image.
        ap: average precision over IoU (or OKS) 0.50 to 0.95.
        ap_per_iou: at each of the thresholds 0.50, 0.55 .. 0.95 (`KindDetails.ious`).
        ap_per_size: by size (`SIZES`).
        best: the best score threshold by F1.
        curves: at thresholds 0.50 and 0.75; empty without objects.
    """

    id: int
    name: str
    objects: int
    detections: int
    ap: float
    ap_per_iou: tuple[float, ...]
    ap_per_size: Mapping[str, float]
    best: BestThreshold
    curves: tuple[PrecisionRecallCurve, ...]


@dataclass(frozen=True)
class ConfusionMatrix:
    """Which category is taken for which.

    Attributes:
        iou: least overlap for a detection to be an object's.
        min_score: detections below are left out.
        labels: names of the rows and columns: categories by id, then `background`.
        counts: [K + 1, K + 1]: annotated category (row) x detected category (column). The last row holds detections
            on no object, the last column objects that nothing found.
    """

    iou: float
    min_score: float
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ErrorAnalysis:
    """What each kind of error costs.

    Attributes:
        iou: foreground threshold of the analysis.
        background_iou: below this overlap with every object a detection lies on the background.
        ap: AP at `iou`, mean over categories, which the costs refer to.
        counts: how many errors there are of each kind (`ERROR_KINDS`).
        ap_costs: by kind, the gain in AP (0 to 1) if these errors, and only these, were mended.
        false_positive_cost, false_negative_cost: the gain if no detection were wrong; if no object were missed.
    """

    iou: float
    background_iou: float
    ap: float
    counts: Mapping[str, int]
    ap_costs: Mapping[str, float]
    false_positive_cost: float
    false_negative_cost: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Detections of similar score: how many, and what share is right.

    Attributes:
        low, high: scores from `low` (not included, but for the first bin) to `high`.
        count: detections.
        mean_score: of these, 0 where there are none.
        precision: share of these that match an object; 0 where there are none.
    """

    low: float
    high: float
    count: int
    mean_score: float
    precision: float


@dataclass(frozen=True)
class Calibration:
    """Whether scores are probabilities of being right at IoU (or OKS) `iou`.

    Attributes:
        iou: threshold.
        ece: expected calibration error: mean gap between score and precision over all detections.
        mce: largest gap of a bin.
        bins: by score.
    """

    iou: float
    ece: float
    mce: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class ConfidenceInterval:
    """How far a number would move with other images of the same kind: percentile bootstrap over images.

    Attributes:
        value: the number itself.
        low, high: bounds.
        level: share of samples between them.
        samples: bootstrap samples drawn.
        standard_error: standard deviation over the samples.
    """

    value: float
    low: float
    high: float
    level: float
    samples: int
    standard_error: float


@dataclass(frozen=True)
class FederatedScores:
    """LVIS' numbers (Gupta et al., CVPR 2019): a category is scored only on images where it is known to be or not be.

    Attributes:
        names: of the numbers, in LVIS' order: AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300 and by size.
        stats: the numbers.
    """

    names: tuple[str, ...]
    stats: tuple[float, ...]


@dataclass(frozen=True)
class KindDetails:
    """All about boxes, masks or keypoints.

    Attributes:
        ious: the ten thresholds 0.50, 0.55 .. 0.95.
        ap_per_iou: mean AP over categories at each.
        ap_per_size: mean AP by size (`SIZES`).
        categories: by id.
        mean_curves: precision over recall at 0.50 and 0.75, mean over categories with objects.
        calibration: of all categories together.
        interval: of the AP.
        confusion: None for keypoints.
        errors: None for keypoints.
        boundary: of masks, the 12 COCO numbers with boundary IoU; None for boxes and keypoints.
        federated: None where the annotations are not federated (no `neg_category_ids`).
    """

    ious: tuple[float, ...]
    ap_per_iou: tuple[float, ...]
    ap_per_size: Mapping[str, float]
    categories: tuple[CategoryDetails, ...]
    mean_curves: tuple[PrecisionRecallCurve, ...]
    calibration: Calibration
    interval: ConfidenceInterval
    confusion: ConfusionMatrix | None = None
    errors: ErrorAnalysis | None = None
    boundary: tuple[float, ...] | None = None
    federated: FederatedScores | None = None


@dataclass(frozen=True)
class EvaluationDetails:
    """Beyond the 12 numbers, by iou type: `bbox`, `segm`, `keypoints`, as far as they were scored."""

    kinds: Mapping[str, KindDetails] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: `{"bbox": {...}, ...}` with the attribute names as keys."""
        return {name: asdict(details) for name, details in self.kinds.items()}


@dataclass(frozen=True)
class CategoryDifference:
    """One category in two runs.

    Attributes:
        id, name: of the category.
        first, second: AP of each run.
        difference: second - first, with its bootstrap interval.
        p_value: two-sided: how often pairs of runs that are equally good would differ as much.
    """

    id: int
    name: str
    first: float
    second: float
    difference: ConfidenceInterval
    p_value: float


@dataclass(frozen=True)
class RunDifference:
    """Boxes, masks or keypoints of two label runs on the same images.

    Attributes:
        first, second: AP of each run.
        difference: second - first, with its interval from a bootstrap that draws the same images for both.
        p_value: as of `CategoryDifference`.
        categories: with objects, by id.
    """

    first: float
    second: float
    difference: ConfidenceInterval
    p_value: float
    categories: tuple[CategoryDifference, ...]


@dataclass(frozen=True)
class RunComparison:
    """Two label runs scored on the same annotations, by iou type."""

    kinds: Mapping[str, RunDifference]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with the attribute names as keys."""
        return {name: asdict(difference) for name, difference in self.kinds.items()}
