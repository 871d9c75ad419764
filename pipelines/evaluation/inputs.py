"""What a scoring reads: labels and annotations, cut into the shards that are scored one by one (`shards`)."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from maskrcnn_core.data.coco.category_names import match_categories, names_of
from maskrcnn_core.data.coco.conversion import SCORING
from maskrcnn_core.data.coco.entry_faults import Faults
from maskrcnn_core.data.coco.json_stream import Entry, stream_entries
from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.annotations import CocoDict, notes_of_ids
from maskrcnn_core.evaluation.coco_json_results import (
    ResultsLayout,
    checked_result,
    results_layout,
)
from maskrcnn_core.evaluation.federated import is_federated
from maskrcnn_core.evaluation.results import Coverage, match_labels
from pipelines import storage
from pipelines.annotations.columns import annotation_columns, conversion
from pipelines.evaluation.shards import LabelRows, Pieces, Shard, ShardAnnotations
from pipelines.labels.files import label_files
from pipelines.labels.parts import HERE, Readers
from pipelines.labels.wanted_rows import WantedRows, first_image_id, wanted_rows

_BUCKETS = 64  # shards of images that have no home among the label files
_HELD_BYTES = 1 << 26  # text of shards in this process before it is handed on
_RESULT_BYTES_PER_SHARD = 1 << 25

_Home = tuple[str, int]


@dataclass(frozen=True)
class ScoringInputs:
    """Everything a scoring starts from.

    Attributes:
        categories: of the annotation file.
        shards: of all images that are evaluated.
        coverage: how labels and images fit together.
        models: fingerprints of the models that made the label rows, sorted.
        layout: of a results file; None for label records.
        federated: images say which categories are known to be absent, as LVIS' do.
        faults: of the annotation file.
        notes: what else a reader of the numbers should know.
    """

    categories: tuple[CocoDict, ...]
    shards: tuple[Shard, ...]
    coverage: Coverage
    models: tuple[str, ...]
    layout: ResultsLayout | None
    federated: bool
    faults: Faults = field(default_factory=Faults)
    notes: tuple[str, ...] = ()


Keep = Callable[[Any], Any]
"""What becomes of a piece of text or of a shard's annotations: kept here, or put where other processes find it; returns
it, or a reference."""


def is_results_file(labels: str) -> bool:
    """Whether labels are a COCO results file rather than label records."""
    return labels.lower().endswith(".json") and not storage.is_folder(labels)


def read_inputs(
    labels: str, annotations: str, images_per_shard: int, only_labelled: bool, keep: Keep, readers: Readers = HERE
) -> ScoringInputs:
    """Read what is to be scored, but for the detections of label files.

    Memory grows with the annotated images, and not with those that have labels.

    Args:
        labels: label run, label file, or COCO results file.
        annotations: COCO annotation file.
        images_per_shard: images of one shard, about.
        only_labelled: leave out annotated images without a good label row (of a results file: without results).
        keep: where text and annotations of the shards go.
        readers: of label files.

    Raises:
        StorageError: a file is missing, or is not what it should be.
        AnnotationError: the annotations are wrong, or labels and annotations do not belong together.
    """
    if is_results_file(labels):
        return _with_results(labels, annotations, only_labelled, keep)
    files = label_files(labels)
    reader = _AnnotationReader(keep)
    reader.read(annotations)
    found = wanted_rows(files, reader.images, images_per_shard, readers)
    known, coverage = match_wanted(files, found, reader.images)
    _complete_sizes(reader.images, known)
    left_out: set[int] = set()
    if only_labelled:
        good = set(known.filter(pa.compute.equal(known.column("status"), "ok")).column("image_id").to_pylist())
        left_out = reader.images.keys() - good
    match = match_categories(found.names.names, names_of(reader.categories))
    sources = {
        ("rows", number): LabelRows(run.file, run.row_groups, match.ids) for number, run in enumerate(found.runs)
    }
    runs = found.run_of_image

    def home(image_id: int) -> _Home:
        return ("rows", runs[image_id]) if image_id in runs else ("none", image_id % _BUCKETS)

    shards = reader.shards(home, sources, {}, left_out)
    inputs = reader.inputs(shards, _without(coverage, left_out), tuple(sorted(found.models)), None)
    return replace(inputs, notes=inputs.notes + ((match.note,) if match.note else ()))


def match_wanted(
    files: Sequence[str], found: WantedRows, images: Mapping[int, CocoDict], *, proposals: bool = False
) -> tuple[pa.Table, Coverage]:
    """`match_labels` of the rows of annotated images that some files hold; arguments as of `wanted_rows`."""
    first_id = None if len(found.table) else first_image_id(files, proposals=proposals)
    return match_labels(found.table, images, found.total - len(found.table), first_id)


def _with_results(labels: str, annotations: str, only_labelled: bool, keep: Keep) -> ScoringInputs:
    shards_wanted = 1 + storage.size(labels) // _RESULT_BYTES_PER_SHARD
    reader = _AnnotationReader(keep)
    reader.read(annotations)

    def home(image_id: int) -> _Home:
        return ("hash", image_id % shards_wanted)

    texts = _Texts(keep)
    layout, with_results, unknown = None, set(), set()
    for number, entry in enumerate(_stream(labels, "results"), 1):
        if entry.key:
            raise AnnotationError(f"{labels}: holds an object; expected a list, as COCO's results format has it")
        if entry.value == [] and number == 1:  # an empty file has such an entry, and no other
            continue
        if number > 1 and layout is None:
            checked_result([], 1)
        result = checked_result(entry.value, number)
        layout = layout.joined(result) if layout else results_layout(result)
        image_id = result["image_id"]
        if image_id in reader.images:
            text = entry.text if result is entry.value else json.dumps(result)
            texts.add(home(image_id), f"[{number},{text}]")
            with_results.add(image_id)
        else:
            unknown.add(image_id)
    if unknown and not with_results:
        raise AnnotationError(
            f"none of the results has an image id of the annotation file ({len(reader.images)} images); the first "
            f"results are of image {min(unknown)}, the first annotated image is {next(iter(reader.images), None)}"
        )
    silent = reader.images.keys() - with_results
    left_out = silent if only_labelled else set()
    coverage = Coverage(len(reader.images), len(reader.images), 0, 0, len(unknown))
    shards = reader.shards(home, {}, texts.finish(), left_out)
    return reader.inputs(shards, _without(coverage, left_out), (), layout or ResultsLayout(True, True, True))


def _complete_sizes(images: Mapping[int, CocoDict], rows: pa.Table) -> None:
    """Where the annotation file gives no size of an image, it is that of the picture that was labelled."""
    columns = [rows.column(name).to_pylist() for name in ("image_id", "width", "height")]
    for image_id, width, height in zip(*columns, strict=True):
        if "width" not in images[image_id] and width and height:
            images[image_id].update(width=width, height=height)


def _without(coverage: Coverage, left_out: set[int]) -> Coverage:
    return Coverage(**{**vars(coverage), "left_out": len(left_out)})


def _stream(uri: str, what: str) -> Iterator[Entry]:
    try:
        with storage.open_stream(uri) as read:
            yield from stream_entries(read)
    except AnnotationError as error:
        raise AnnotationError(f"{uri}: {error}; expected COCO {what}") from error


@dataclass
class _Texts:
    """JSON texts of entries by shard, handed on in pieces."""

    keep: Keep
    waiting: dict[_Home, list[str]] = field(default_factory=lambda: defaultdict(list))
    pieces: dict[_Home, list[Any]] = field(default_factory=lambda: defaultdict(list))
    held: int = 0

    def add(self, home: _Home, text: str) -> None:
        self.waiting[home].append(text)
        self.held += len(text)
        if self.held > _HELD_BYTES:
            self._hand_on()

    def finish(self) -> dict[_Home, Pieces]:
        self._hand_on()
        return {home: tuple(pieces) for home, pieces in self.pieces.items()}

    def _hand_on(self) -> None:
        for home, texts in self.waiting.items():
            self.pieces[home].append(self.keep(f"[{','.join(texts)}]"))
        self.waiting.clear()
        self.held = 0


class _AnnotationReader:
    """Reads an annotation file: images and categories now, the annotations where they are scored."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self.images: dict[int, CocoDict] = {}

    @property
    def categories(self) -> tuple[CocoDict, ...]:
        """Clean entries."""
        return self._columns.info.categories

    def read(self, uri: str) -> None:
        """Read all of it.

        Raises:
            StorageError: no such file.
            AnnotationError: it is not COCO instances JSON, or an entry is wrong.
        """
        self._columns = annotation_columns(uri, SCORING, convert=conversion())
        for entry in self._columns.image_entries():
            entry.pop("file_name", None)
            self.images[entry["id"]] = entry

    def shards(
        self,
        home: Callable[[int], _Home],
        sources: Mapping[_Home, LabelRows],
        results: Mapping[_Home, Pieces],
        left_out: set[int],
    ) -> tuple[Shard, ...]:
        """All shards of images that are evaluated; `home` says which one an image is in."""
        positions: dict[_Home, list[int]] = defaultdict(list)
        images: dict[_Home, list[CocoDict]] = defaultdict(list)
        for position, (image_id, image) in enumerate(self.images.items()):
            own = home(image_id)
            positions[own].append(position)
            images[own].append(image)
        return tuple(
            Shard(
                tuple(images[own]),
                sources.get(own),
                self._keep(ShardAnnotations(self._columns, np.array(positions[own]))),
                results.get(own, ()),
                frozenset(left_out.intersection(image["id"] for image in images[own])),
            )
            for own in images
        )

    def inputs(
        self, shards: tuple[Shard, ...], coverage: Coverage, models: tuple[str, ...], layout: ResultsLayout | None
    ) -> ScoringInputs:
        """All that was read."""
        info = self._columns.info
        return ScoringInputs(
            info.categories,
            shards,
            coverage,
            models,
            layout,
            is_federated(tuple(self.images.values())),
            info.faults,
            notes_of_ids(info.has_id_zero),
        )
