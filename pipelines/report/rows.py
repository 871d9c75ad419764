"""Label rows for a report: read in small parts, counted, and the places of the most interesting ones remembered.

Many files are read in tasks, whose counts and places are joined. Nothing here grows with the number of images: counts
have a fixed size, and of each gallery and category only the best
few places are kept (a place is a file and a row; the row itself is read again when its picture is drawn).
"""

import copy
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskrcnn_core.data.coco.category_names import distinct_names
from maskrcnn_core.errors import StorageError
from maskrcnn_core.records.labels import ImageRecord, record_from_row, with_category_ids
from maskrcnn_core.report.content import CategoryCount, ExampleKind, Histogram
from maskrcnn_core.report.examples import IGNORED, Candidate, judged_candidates, match_objects, unjudged_candidates
from maskrcnn_core.report.settings import PicturesConfig
from pipelines.labels.chunks import NOTHING, Tally, tally_rows
from pipelines.labels.files import RECORD_COLUMNS, open_label_file
from pipelines.labels.parts import HERE, Readers

_ROWS_AT_ONCE = 256
_SCORE_BINS = 40
_SIZE_EDGES = 2.0 ** (np.arange(25) / 2)  # 1 to 4096 pixels; each bin doubles the area
_MOST_COUNT_BINS = 30

AnnotationsOf = Mapping[int, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Place:
    """Where a label row stands."""

    file: str
    row: int


@dataclass(frozen=True)
class Chosen:
    """An example to draw: what and where."""

    candidate: Candidate
    place: Place


@dataclass
class _CategoryTally:
    detections: int = 0
    confident: int = 0
    images: int = 0


@dataclass
class Galleries:
    """The most interesting candidates of each gallery and category.

    Attributes:
        per_gallery, per_image: of `PicturesConfig`.
    """

    per_gallery: int
    per_image: int
    _heaps: dict[tuple[ExampleKind, int | None], list[tuple[float, int, Chosen]]] = field(default_factory=dict)
    _order: int = 0  # counts down: of two equals the earlier stays

    def offer(self, candidates: Sequence[Candidate], place: Place) -> None:
        """Keep the candidates of an image that are among the best so far."""
        taken: Counter[tuple[ExampleKind, int | None]] = Counter()
        for candidate in sorted(candidates, key=lambda one: -one.interest):
            key = candidate.kind, candidate.category_id
            if taken[key] >= self.per_image or not self.per_gallery:
                continue
            taken[key] += 1
            self._keep(key, (candidate.interest, self._order, Chosen(candidate, place)))
            self._order -= 1

    def join(self, later: "Galleries") -> None:
        """Keep the best of these and of those that were chosen from later images."""
        for key, heap in later._heaps.items():
            for interest, order, chosen in heap:
                self._keep(key, (interest, self._order + order, chosen))
        self._order += later._order

    def _keep(self, key: tuple[ExampleKind, int | None], entry: tuple[float, int, Chosen]) -> None:
        heap = self._heaps.setdefault(key, [])
        if len(heap) < self.per_gallery:
            heapq.heappush(heap, entry)
        elif entry[:2] > heap[0][:2]:
            heapq.heapreplace(heap, entry)

    def chosen(self, kind: ExampleKind) -> list[Chosen]:
        """The examples of a gallery, most interesting first: the best of every category, then the second of each, and
        so on until it is full; at most `per_image` of an image."""
        ranked = [sorted(heap, reverse=True) for (own, _), heap in self._heaps.items() if own == kind]
        rounds = ((rank, -entry[0], -entry[1], entry[2]) for heap in ranked for rank, entry in enumerate(heap))
        taken: Counter[Place] = Counter()
        picked: list[tuple[float, int, Chosen]] = []
        for _, interest, order, chosen in sorted(rounds, key=lambda one: one[:3]):
            if len(picked) < self.per_gallery and taken[chosen.place] < self.per_image:
                taken[chosen.place] += 1
                picked.append((interest, order, chosen))
        return [chosen for _, _, chosen in sorted(picked, key=lambda one: one[:2])]


class RowScan:
    """Everything a report counts, from label rows that come in parts.

    Args:
        settings: of the galleries.
        annotations: annotated objects by image id; None where there is no ground truth.
        names: of the annotation file's categories by id.

    Attributes:
        tally: images by status, detections, first failures.
        models: fingerprints in the rows.
        galleries: examples.
    """

    def __init__(self, settings: PicturesConfig, annotations: AnnotationsOf | None, names: Mapping[int, str]) -> None:
        self.tally: Tally = NOTHING
        self.models: set[str] = set()
        self.galleries = Galleries(settings.per_gallery, settings.per_image)
        self._settings, self._annotations = settings, annotations
        self._names = dict(names)
        self._shown = distinct_names(self._names.items())
        self._categories: dict[int, _CategoryTally] = {}
        self._right, self._other = (np.zeros(_SCORE_BINS, np.int64) for _ in range(2))
        self._sizes = np.zeros(len(_SIZE_EDGES) - 1, np.int64)
        self._per_image: Counter[int] = Counter()

    def add(self, rows: pa.Table, file: str, start: int) -> None:
        """Count rows of a file, of which the first is number `start`."""
        self.tally += tally_rows(rows)
        self.models.update(filter(None, rows.column("model").unique().to_pylist()))
        self._count_detections(rows)
        for offset in self._interesting(rows):
            self._judge(rows.slice(offset, 1).to_pylist()[0], Place(file, start + offset))

    def another(self) -> "RowScan":
        """One of the same kind that has seen nothing yet."""
        return RowScan(self._settings, self._annotations, self._names)

    def detached(self) -> "RowScan":
        """The same without the annotations, to be sent to where it is joined."""
        sent = copy.copy(self)
        sent._annotations = None
        return sent

    def join(self, later: "RowScan") -> None:
        """Count what another scan, with the same settings and annotations, has seen of later rows."""
        self.tally += later.tally
        self.models |= later.models
        self.galleries.join(later.galleries)
        self.add_names(later._names)
        for category_id, counted in later._categories.items():
            own = self._categories.setdefault(category_id, _CategoryTally())
            own.detections += counted.detections
            own.confident += counted.confident
            own.images += counted.images
        self._right += later._right
        self._other += later._other
        self._sizes += later._sizes
        self._per_image.update(later._per_image)

    def add_names(self, names: Mapping[int, str]) -> None:
        """Names of categories that label files carry; the annotation file's win."""
        self._names = {**names, **self._names}
        self._shown = distinct_names(self._names.items())

    def named(self, record: ImageRecord) -> ImageRecord:
        """The record with the names that the page has for its categories."""
        detections = record.detections
        if all(self._shown.get(one.category_id, one.category) == one.category for one in detections):
            return record
        renamed = (replace(one, category=self._shown.get(one.category_id, one.category)) for one in detections)
        return replace(record, detections=tuple(renamed))

    def _count_detections(self, rows: pa.Table) -> None:
        lists = rows.column("detections").combine_chunks()
        detections = pc.list_flatten(lists)
        scores = detections.field("score").to_numpy(zero_copy_only=False)
        ids = detections.field("category_id").to_numpy(zero_copy_only=False)
        images = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        boxes = pc.list_flatten(detections.field("bbox")).to_numpy(zero_copy_only=False).reshape(-1, 4)
        self._sizes += _counts(np.sqrt(np.maximum(boxes[:, 2] * boxes[:, 3], 0.0)), _SIZE_EDGES)
        if self._annotations is None:
            self._other += _counts(scores, np.linspace(0, 1, _SCORE_BINS + 1))
        confident = scores >= self._settings.min_score
        for category_id in np.unique(ids).tolist():
            own = ids == category_id
            tally = self._categories.setdefault(category_id, _CategoryTally())
            tally.detections += int(own.sum())
            tally.confident += int((own & confident).sum())
            tally.images += len(np.unique(images[own & confident]))
            if category_id not in self._names:
                self.add_names({category_id: detections.field("category")[int(np.flatnonzero(own)[0])].as_py()})
        ok = pc.equal(rows.column("status"), "ok").to_numpy(zero_copy_only=False)
        self._per_image.update(np.bincount(images[confident], minlength=len(rows))[ok].tolist())

    def _interesting(self, rows: pa.Table) -> list[int]:
        """Rows to look at one by one: with ground truth all of them."""
        ok = pc.equal(rows.column("status"), "ok").to_numpy(zero_copy_only=False)
        if self._annotations is None:
            # Python only for rows that could enter a gallery: the most and the least of this part.
            lists = rows.column("detections").combine_chunks()
            scores = pc.list_flatten(lists).field("score").to_numpy(zero_copy_only=False)
            images = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
            confident = scores >= self._settings.min_score
            most = np.bincount(images[confident], minlength=len(rows))
            best = np.zeros(len(rows))
            np.maximum.at(best, images[confident], scores[confident])
            least = np.full(len(rows), 2.0)
            np.minimum.at(least, images[confident], scores[confident])
            keep = max(self._settings.per_gallery, 1)
            wanted = {*np.argsort(-most)[:keep], *np.argsort(-best)[:keep], *np.argsort(least)[:keep]}
            return sorted(int(row) for row in wanted if ok[row] and most[row])
        return [int(row) for row in np.flatnonzero(ok)]

    def _judge(self, row: Mapping[str, Any], place: Place) -> None:
        record = self.named(record_from_row(row))
        if self._annotations is None:
            self.galleries.offer(unjudged_candidates(record, self._settings.min_score), place)
            return
        truth = self._annotations.get(row["image_id"])
        if truth is None:
            return
        matched = match_objects(record.detections, truth, self._settings.match_overlap)
        scores = np.array([detection.score for detection in record.detections])
        edges = np.linspace(0, 1, _SCORE_BINS + 1)
        self._right += _counts(scores[matched.object_of >= 0], edges)
        self._other += _counts(scores[(matched.object_of < 0) & (matched.object_of != IGNORED)], edges)
        candidates = judged_candidates(record, truth, matched, self._shown, self._settings.min_score)
        self.galleries.offer(candidates, place)

    def categories(self) -> tuple[CategoryCount, ...]:
        """Counts of every category that is known, by id."""
        objects: Counter[int] = Counter()
        for entries in (self._annotations or {}).values():
            objects.update(int(entry["category_id"]) for entry in entries if not entry.get("iscrowd", 0))
        nothing = _CategoryTally()
        return tuple(
            CategoryCount(
                id=category_id,
                name=self._shown[category_id],
                objects=None if self._annotations is None else objects[category_id],
                detections=self._categories.get(category_id, nothing).detections,
                confident=self._categories.get(category_id, nothing).confident,
                images=self._categories.get(category_id, nothing).images,
            )
            for category_id in sorted(self._names)
        )

    def scores(self) -> Histogram:
        """Detections by score."""
        edges = tuple(np.linspace(0, 1, _SCORE_BINS + 1).round(4).tolist())
        if self._annotations is None:
            return Histogram(edges, (("detections", tuple(self._other.tolist())),))
        series = (("right", tuple(self._right.tolist())), ("wrong", tuple(self._other.tolist())))
        return Histogram(edges, series, stacked=True)

    def sizes(self) -> Histogram:
        """Boxes by size, from the first bin to the last that holds something."""
        series = [("detections", self._sizes)]
        if self._annotations is not None:
            boxes = [e["bbox"] for entries in self._annotations.values() for e in entries if not e.get("iscrowd", 0)]
            sides = np.array(boxes, np.float64).reshape(-1, 4)[:, 2:]
            series.append(("objects", _counts(np.sqrt(sides.prod(axis=1)), _SIZE_EDGES)))
        used = np.flatnonzero(sum(counts for _, counts in series))
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        first, last = first - first % 2, last + last % 2  # whole powers of two at the ends
        return Histogram(
            tuple(_SIZE_EDGES[first : last + 1].round(1).tolist()),
            tuple((name, tuple(counts[first:last].tolist())) for name, counts in series),
        )

    def per_image(self) -> Histogram:
        """Images by their number of confident detections."""
        most = max(self._per_image, default=0) + 1
        width = -(-most // _MOST_COUNT_BINS)
        bins = np.zeros(-(-most // width), np.int64)
        for objects, images in self._per_image.items():
            bins[objects // width] += images
        return Histogram(tuple(range(0, len(bins) * width + 1, width)), (("images", tuple(bins.tolist())),))


def _counts(values: NDArray[np.floating], edges: NDArray[np.floating]) -> NDArray[np.int64]:
    """Histogram; values outside fall into the first and last bin."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].astype(np.int64)


def scan_labels(files: Sequence[str], scan: RowScan, category_ids: Mapping[int, int], readers: Readers = HERE) -> None:
    """Show all label rows to `scan`, a small part at a time.

    Args:
        files: uris of the label files.
        scan: sees them, or is joined with what tasks have seen.
        category_ids: as of `records.labels.with_category_ids`.
        readers: of the files.

    Raises:
        StorageError: a file holds something else, or a row is not what it should be.
    """
    shared = readers.share((scan.another(), dict(category_ids)))
    for part in readers.in_order(_scan_part, [(some, shared) for some in readers.parts(files)]):
        scan.join(part)


def _scan_part(files: Sequence[str], shared: tuple[RowScan, Mapping[int, int]]) -> RowScan:
    fresh, category_ids = shared
    scan = fresh.another()
    for name in files:
        with open_label_file(name, pre_buffer=True) as file:
            scan.add_names({category_ids.get(one.id, one.id): one.name for one in file.categories})
            for start, batch in file.batches(RECORD_COLUMNS, _ROWS_AT_ONCE):
                scan.add(pa.Table.from_batches([with_category_ids(batch, category_ids)]), name, start)
    return scan.detached()


def read_row(place: Place, category_ids: Mapping[int, int]) -> dict[str, Any]:
    """One label row, as of `Table.to_pylist`; `category_ids` as of `scan_labels`."""
    with open_label_file(place.file) as file:
        first = 0
        for group, rows in enumerate(file.row_groups):
            if place.row < first + rows:
                for start, batch in file.batches(RECORD_COLUMNS, row_groups=[group]):
                    if place.row < start + len(batch):
                        chosen = with_category_ids(batch.slice(place.row - start, 1), category_ids)
                        row: dict[str, Any] = chosen.to_pylist()[0]
                        return row
            first += rows
    raise StorageError(f"{place.file}: has changed while the report was made: row {place.row} is gone")
