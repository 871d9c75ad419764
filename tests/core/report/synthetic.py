"""Contents of a page with everything that it can show, of any number of categories."""

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_core.evaluation.analysis import (
    BestThreshold,
    Calibration,
    CategoryDetails,
    ConfidenceInterval,
    ConfusionMatrix,
    ErrorAnalysis,
    EvaluationDetails,
    FederatedScores,
    KindDetails,
    PrecisionRecallCurve,
    ReliabilityBin,
)
from maskrcnn_core.evaluation.coco import CategoryScore, CocoScores
from maskrcnn_core.evaluation.results import Coverage
from maskrcnn_core.report.content import CategoryCount, Example, ExampleKind, FailedRow, Histogram, Panel, ReportContent

IOUS = tuple(0.5 + 0.05 * step for step in range(10))


def picture(side: int = 32) -> bytes:
    stream = io.BytesIO()
    shades = np.linspace(0, 255, side).astype(np.uint8)
    Image.fromarray(np.stack([np.broadcast_to(shades, (side, side))] * 3, axis=-1)).save(stream, format="WEBP")
    return stream.getvalue()


def example(kind: ExampleKind, category_id: int | None, title: str, source: str = "image.jpg") -> Example:
    panels = tuple(Panel(name, picture(), 32, 32, (0.25, 0.25, 0.5, 0.5)) for name in ("ground truth", "prediction"))
    return Example(kind, category_id, title, f"a note on {title}", source, panels)


def curve(iou: float, strength: float) -> PrecisionRecallCurve:
    recalls = np.linspace(0, 1, 101)
    precision = np.clip(1.02 - (recalls / max(strength, 0.01)) ** 4, 0, 1) * (recalls < strength)
    return PrecisionRecallCurve(iou, tuple(precision.tolist()), tuple((1 - recalls).tolist()))


def category_details(number: int, name: str, strength: float) -> CategoryDetails:
    return CategoryDetails(
        id=number,
        name=name,
        objects=10 * number,
        detections=17 * number,
        ap=strength,
        ap_per_iou=tuple(strength * (1.6 - iou) for iou in IOUS),
        ap_per_size={"all": strength, "small": strength / 2, "medium": strength, "large": -1.0},
        best=BestThreshold(0.61, 0.7, 0.75, 0.66),
        curves=(curve(0.5, strength + 0.2), curve(0.75, strength)),
    )


def kind_details(names: list[str], scale: float) -> KindDetails:
    strengths = [scale * (0.5 + 0.45 * math.sin(1.7 * place)) for place in range(len(names))]
    last = len(names)
    counts = np.random.default_rng(0).poisson(0.4, (last + 1, last + 1)) + np.diag([9] * last + [0])
    bins = tuple(ReliabilityBin(b / 10, (b + 1) / 10, 40, b / 10 + 0.05, (b / 10) ** 1.3) for b in range(10))
    return KindDetails(
        ious=IOUS,
        ap_per_iou=tuple(scale * (1.5 - iou) for iou in IOUS),
        ap_per_size={"all": scale * 0.5, "small": 0.2, "medium": 0.5, "large": -1.0},
        categories=tuple(
            category_details(place + 1, name, strength)
            for place, (name, strength) in enumerate(zip(names, strengths, strict=True))
        ),
        mean_curves=(curve(0.5, 0.9 * scale), curve(0.75, 0.6 * scale)),
        calibration=Calibration(0.5, 0.043, 0.1, bins),
        interval=ConfidenceInterval(scale * 0.5, scale * 0.47, scale * 0.54, 0.95, 200, 0.02),
        confusion=ConfusionMatrix(0.5, 0.5, (*names, "background"), tuple(map(tuple, counts.tolist()))),
        errors=ErrorAnalysis(
            iou=0.5,
            background_iou=0.1,
            ap=0.71,
            counts={
                "classification": 12,
                "localisation": 80,
                "both": 3,
                "duplicate": 9,
                "background": 44,
                "missed": 60,
            },
            ap_costs={
                "classification": 0.012,
                "localisation": 0.08,
                "both": 0.001,
                "duplicate": 0.004,
                "background": 0.05,
                "missed": 0.11,
            },
            false_positive_cost=0.14,
            false_negative_cost=0.19,
        ),
    )


def content(names: list[str], **changes: Any) -> ReportContent:
    """A page with ground truth, boxes and masks; category ids count from 1."""
    federated = FederatedScores(("AP", "APr"), (0.123, 0.045))
    masks = replace(kind_details(names, 0.8), boundary=(0.321, *(0.2,) * 11), federated=federated)
    kinds = {"bbox": kind_details(names, 0.9), "segm": masks}
    numbers = CocoScores(
        stats={kind: (0.383, 0.756, 0.349, 0.384, 0.456, -1.0, 0.024, 0.199, 0.445, 0.4, 0.8, -1.0) for kind in kinds},
        per_category=tuple(
            CategoryScore(n, name, 10 * n, {kind: kinds[kind].categories[n - 1].ap for kind in kinds})
            for n, name in enumerate(names, 1)
        ),
        coverage=Coverage(images=1200, labelled=1190, failed=7, unlabelled=3, unknown=2),
        detections=5439,
        annotations=2221,
        skipped={},
        unknown_categories={},
    )
    page = ReportContent(
        title="Evaluation report",
        subtitle="labels against annotations",
        statuses={"ok": 1190, "missing": 5, "unreadable": 2},
        failures=(FailedRow("s3://bucket/a folder/image.jpg", "missing", "no such file"),),
        detections=5439,
        min_score=0.5,
        match_overlap=0.5,
        categories=tuple(CategoryCount(n, name, 10 * n, 17 * n, 9 * n, n) for n, name in enumerate(names, 1)),
        scores=Histogram((0.0, 0.5, 1.0), (("right", (10, 900)), ("wrong", (400, 30))), stacked=True),
        sizes=Histogram((1.0, 1.4, 2.0, 2.8, 4.0), (("detections", (1, 5, 9, 2)), ("objects", (2, 4, 8, 1)))),
        per_image=Histogram((0.0, 1.0, 2.0), (("images", (3, 4)),)),
        examples=tuple(
            example(kind, place % len(names) + 1, f"{names[place % len(names)]} {kind} {place}")
            for kind in ("right", "missed", "wrong", "mask")
            for place in range(3)
        ),
        made={"command": "python -m jobs.evaluate", "model": "0123456789abcdef"},
        numbers=numbers,
        details=EvaluationDetails(kinds),
    )
    return replace(page, **changes)
