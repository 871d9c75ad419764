"""What a report shows, as plain facts; `pipelines/report/run.py` gathers them and `page.py` lays them out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.evaluation.analysis import EvaluationDetails
from maskrcnn_core.evaluation.coco import CocoScores

ExampleKind = Literal["right", "missed", "wrong", "mask", "sure", "unsure", "crowded"]
JUDGED_KINDS: tuple[ExampleKind, ...] = ("right", "missed", "wrong", "mask")
"""Galleries with ground truth: true positives, misses, false positives, worst masks."""
UNJUDGED_KINDS: tuple[ExampleKind, ...] = ("crowded", "sure", "unsure")
"""Galleries without: images with most objects, most and least confident detections."""


@dataclass(frozen=True)
class Panel:
    """One picture of an example.

    Attributes:
        heading: what it shows, such as `ground truth`.
        picture: an encoded WebP.
        width, height: of it, pixels.
        focus: left, top, width, height of the object in question as shares of the picture; None = the whole picture.
    """

    heading: str
    picture: bytes
    width: int
    height: int
    focus: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Example:
    """One object, or one image, worth seeing.

    Attributes:
        kind: the gallery that it belongs to.
        category_id: of the object; None for a whole image.
        title: such as the category and score.
        note: why it is here, such as the overlap.
        source: where the picture comes from.
        panels: one or more pictures of the same place.
    """

    kind: ExampleKind
    category_id: int | None
    title: str
    note: str
    source: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Histogram:
    """How often values fall between edges.

    Attributes:
        edges: increasing, one more than there are bins.
        series: name and counts of each; all over the same edges.
        stacked: counts of the series add up; False = drawn beside each other as outlines.
    """

    edges: tuple[float, ...]
    series: tuple[tuple[str, tuple[int, ...]], ...]
    stacked: bool = False


@dataclass(frozen=True)
class CategoryCount:
    """How much there is of one category.

    Attributes:
        id, name: of the category.
        objects: annotated, crowd regions not counted; None without annotations.
        detections: in the labels.
        confident: of these, with at least the score of the galleries.
        images: images with a confident detection.
    """

    id: int
    name: str
    objects: int | None
    detections: int
    confident: int
    images: int


@dataclass(frozen=True)
class FailedRow:
    """An image that was not labelled, and why."""

    uri: str
    status: str
    error: str


@dataclass(frozen=True)
class ReportContent:
    """Everything on the page.

    Attributes:
        title: of the page.
        subtitle: what the labels are of.
        statuses: number of label rows by status.
        failures: the first images that failed.
        detections: in all label rows.
        min_score: detections from here on count as confident, and are drawn.
        match_overlap: least box overlap (IoU) for a detection to be an object's, in the galleries.
        categories: by id.
        scores: score of each detection; with annotations, right and wrong ones.
        sizes: square root of the box area, pixels; with annotations, objects as well.
        per_image: confident detections of an image.
        examples: pictures, in order.
        left_out: said where pictures had to be left out, else empty.
        made: how the page was made: name and value.
        numbers: COCO's numbers; None without annotations.
        details: what is known beyond these.
    """

    title: str
    subtitle: str
    statuses: Mapping[str, int]
    failures: tuple[FailedRow, ...]
    detections: int
    min_score: float
    match_overlap: float
    categories: tuple[CategoryCount, ...]
    scores: Histogram
    sizes: Histogram
    per_image: Histogram
    examples: tuple[Example, ...] = ()
    left_out: str = ""
    made: Mapping[str, str] = field(default_factory=dict)
    numbers: CocoScores | None = None
    details: EvaluationDetails | None = None

    @property
    def images(self) -> int:
        """Label rows."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Label rows whose status is not ok."""
        return self.images - self.statuses.get("ok", 0)
