"""A label run as one HTML page, with ground truth or without."""

import datetime
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.config.limits import MAX_PIXELS
from maskrcnn_core.data.coco.category_names import CategoryMatch, match_categories, names_of
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.files import located
from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.evaluation.analysis import EvaluationDetails
from maskrcnn_core.evaluation.annotations import Annotations
from maskrcnn_core.evaluation.coco import CocoScores
from maskrcnn_core.records.labels import record_from_row
from maskrcnn_core.report.content import (
    JUDGED_KINDS,
    UNJUDGED_KINDS,
    Example,
    ExampleKind,
    FailedRow,
    Panel,
    ReportContent,
)
from maskrcnn_core.report.page import page_html
from maskrcnn_core.report.pictures import example_panels
from maskrcnn_core.report.settings import PicturesConfig
from pipelines import storage
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.run import EvaluationSummary, load_annotations
from pipelines.images.reading import read_image
from pipelines.images.split_names import file_names
from pipelines.labels.files import category_names, label_files
from pipelines.labels.parts import HERE, readers_for
from pipelines.report.config import ReportRun
from pipelines.report.rows import Chosen, RowScan, read_row, scan_labels
from pipelines.storage.s3_settings import applied
from pipelines.storage.writable import require_writable_folder

_BASE64 = 4 / 3  # a picture's bytes in the page
_DECODED_IMAGES = 8  # kept, because one image has several examples
_PACKAGES = ("maskrcnn-ray", "torch", "pycocotools", "hotcoco")


@dataclass(frozen=True)
class GroundTruth:
    """What labels are compared with.

    Attributes:
        uri: of the annotation file.
        annotations: its clean entries.
        numbers: COCO's numbers of the labels.
        details: what is known beyond these; None = nothing.
        notes: what else a reader of the numbers should know.
    """

    uri: str
    annotations: Annotations
    numbers: CocoScores
    details: EvaluationDetails | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportSummary:
    """What was written.

    Attributes:
        page: the HTML file.
        megabytes: its size.
        images: label rows.
        examples: in the galleries.
        left_out: said where pictures are missing, else empty.
    """

    page: str
    megabytes: float
    images: int
    examples: int
    left_out: str


def write_report(
    run: ReportRun, truth: GroundTruth | None = None, command: str = "", *, in_tasks: bool = True
) -> ReportSummary:
    """Write `index.html` into the run's output folder.

    Args:
        run: what to show.
        truth: ground truth and scores; None = labels alone.
        command: that made the page, to be shown on it.
        in_tasks: many label files are read by a cluster.

    Raises:
        StorageError: there are no labels, or the page cannot be written.
    """
    with applied(run.storage):
        return _write_report(run, truth, command, in_tasks)


def _write_report(run: ReportRun, truth: GroundTruth | None, command: str, in_tasks: bool) -> ReportSummary:
    check_output(run.output)
    objects = None if truth is None else truth.annotations.by_image()
    names = {} if truth is None else names_of(truth.annotations.categories)
    files = label_files(run.labels)
    with readers_for(len(files), run.cluster, run.storage) if in_tasks else nullcontext(HERE) as readers:
        match = CategoryMatch() if truth is None else match_categories(category_names(files, readers), names)
        scan = RowScan(run.pictures, objects, {number: name or str(number) for number, name in names.items()})
        scan_labels(files, scan, match.ids, readers)
    artist = _Artist(run, truth, objects, match.ids)
    examples, left_out = artist.examples(scan)
    content = _content(run, truth, scan, examples, left_out, command)
    page = page_html(content).encode()
    uri = storage.join(run.output, "index.html")
    storage.write_bytes_atomically(uri, page)
    return ReportSummary(uri, len(page) / 1e6, content.images, len(examples), left_out)


def report_evaluation(run: EvaluateRun, summary: EvaluationSummary, command: str) -> ReportSummary:
    """Write the report of an evaluation into `run.report`.

    Args:
        run: of `on_labels`.
        summary: the numbers.
        command: that made the page, to be shown on it.

    Raises:
        StorageError: the labels are gone, or the page cannot be written.
    """
    assert run.report is not None
    shown = ReportRun(run.labels, run.report, run.images, "Evaluation report", run.pictures, run.storage, run.cluster)
    with applied(run.storage):
        annotations = load_annotations(run.annotations)
    truth = GroundTruth(run.annotations, annotations, summary.scores, summary.details, summary.notes)
    return write_report(shown, truth, command, in_tasks=run.evaluate.distributed != "never")


def on_labels(run: EvaluateRun, labels: str) -> EvaluateRun:
    """A run with a report, for labels that are there, with everything counted that the report shows.

    Raises:
        StorageError: as `check_output`.
    """
    assert run.report is not None
    check_output(run.report)
    settings = replace(run.evaluate, details=True)
    return replace(run, labels=labels, checkpoint=None, evaluate=settings)


def check_output(output: str) -> None:
    """Make sure, before any work, that the page can be written there.

    Raises:
        StorageError: a file is there, or the place takes no files.
    """
    require_writable_folder(output, "the report's output")


def _content(
    run: ReportRun,
    truth: GroundTruth | None,
    scan: RowScan,
    examples: Sequence[Example],
    left_out: str,
    command: str,
) -> ReportContent:
    subtitle = run.labels if truth is None else f"{run.labels} against {truth.uri}"
    return ReportContent(
        title=run.title,
        subtitle=subtitle,
        statuses=scan.tally.statuses,
        failures=tuple(FailedRow(one.uri, one.status, one.error or "no reason given") for one in scan.tally.failures),
        detections=scan.tally.detections,
        min_score=run.pictures.min_score,
        match_overlap=run.pictures.match_overlap,
        categories=scan.categories(),
        scores=scan.scores(),
        sizes=scan.sizes(),
        per_image=scan.per_image(),
        examples=tuple(examples),
        left_out=left_out,
        made=_provenance(run, truth, scan, command),
        numbers=None if truth is None else truth.numbers,
        details=None if truth is None else truth.details,
    )


class _Artist:
    """Draws the examples that a scan has chosen.

    Args:
        run: where the images lie, and how large pictures are.
        truth, objects: ground truth, its annotated objects by image id; None without.
        category_ids: as of `scan_labels`.
    """

    def __init__(
        self,
        run: ReportRun,
        truth: GroundTruth | None,
        objects: Mapping[int, Sequence[Mapping[str, Any]]] | None,
        category_ids: Mapping[int, int],
    ) -> None:
        self._root, self._settings = run.images, run.pictures
        self._objects, self._category_ids = objects, category_ids
        images = {} if truth is None else truth.annotations.images
        named = [] if run.images is None else [image for image in images.values() if "file_name" in image]
        names = file_names(run.images or "", named)
        self._file_names = dict(zip((image["id"] for image in named), names, strict=True))

    def examples(self, scan: RowScan) -> tuple[list[Example], str]:
        """The galleries' examples in order, and a sentence about those that had to be left out."""
        kinds = UNJUDGED_KINDS if self._objects is None else JUDGED_KINDS
        budget = 1e6 * self._settings.max_megabytes
        drawn: dict[ExampleKind, list[Example]] = {kind: [] for kind in kinds}
        without_room, unreadable = 0, []
        for chosen in _taking_turns([scan.galleries.chosen(kind) for kind in kinds]):
            if budget <= 0:
                without_room += 1
                continue
            try:
                example = self._draw(chosen, scan)
            except (ImageError, StorageError, ValueError) as error:
                unreadable.append(str(error))
                continue
            size = _BASE64 * sum(len(panel.picture) for panel in example.panels)
            if size > budget:
                budget = 0
                without_room += 1
                continue
            budget -= size
            drawn[example.kind].append(example)
        return list(chain.from_iterable(drawn.values())), _left_out(without_room, unreadable, self._settings)

    def _draw(self, chosen: Chosen, scan: RowScan) -> Example:
        row = read_row(chosen.place, self._category_ids)
        record, candidate = scan.named(record_from_row(row)), chosen.candidate
        path = self._image_path(row)
        pixels = _pixels(path, record.height or 0, record.width or 0)
        panels: tuple[Panel, ...] = example_panels(
            pixels,
            record,
            None if self._objects is None else self._objects[row["image_id"]],
            {category.id: category.name for category in scan.categories()},
            candidate.box,
            min_score=self._settings.min_score,
            side=self._settings.side,
        )
        image_title = f"{row['uri'].rsplit('/', 1)[-1]} (image {row['image_id']})"
        return Example(candidate.kind, candidate.category_id, candidate.title, candidate.note, image_title, panels)

    def _image_path(self, row: Mapping[str, Any]) -> str:
        """Where an image lies: where its row says or, where the run says where images lie now, below that folder."""
        uri = str(row["uri"])
        if self._root is None:
            return uri
        name = self._file_names.get(row["image_id"], uri)
        if located(self._root, name) == name:  # that is where it lay
            name = name.rsplit("/", 1)[-1]
        path = located(self._root, name)
        if not storage.below(path, self._root):
            raise StorageError(f"{path}: lies outside of {self._root}, where --images says that images lie")
        return path


def _taking_turns(galleries: Sequence[Sequence[Chosen]]) -> Iterator[Chosen]:
    """The first of each gallery, then the second of each: where room is short, all galleries are short."""
    for turn in zip_longest(*galleries):
        yield from (chosen for chosen in turn if chosen is not None)


@lru_cache(maxsize=_DECODED_IMAGES)
def _pixels(uri: str, height: int, width: int) -> NDArray[np.uint8]:
    """The image as it was labelled, [H, W, 3]; whether its EXIF orientation was applied follows from the size."""
    content = read_image(uri)
    for apply_exif in (False, True):
        image = decode_image(content, max_pixels=MAX_PIXELS, apply_exif=apply_exif)
        if tuple(image.shape[-2:]) == (height, width):
            pixels: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
            return pixels
    raise StorageError(f"{uri}: is {image.shape[-1]} x {image.shape[-2]} pixels, labelled at {width} x {height}")


def _left_out(without_room: int, unreadable: Sequence[str], settings: PicturesConfig) -> str:
    parts = []
    if without_room:
        parts.append(
            f"{without_room} examples did not fit into {settings.max_megabytes:g} megabytes of pictures "
            "(--pictures.max_megabytes)."
        )
    if unreadable:
        parts.append(
            f"{len(unreadable)} examples have no picture because their image cannot be read; the first: "
            f"{unreadable[0]}. Say with --images where the images lie now."
        )
    return " ".join(parts)


def _provenance(run: ReportRun, truth: GroundTruth | None, scan: RowScan, command: str) -> dict[str, str]:
    """How the page was made, to be read by people."""
    settings = run.pictures
    made = {"made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")}
    if command:
        made["command"] = command
    made["labels"] = run.labels
    if truth is not None:
        made["annotations"] = truth.uri
    made["images"] = run.images or "where the labels say"
    made["model"] = "\n".join(sorted(scan.models)) or "no label rows"
    labelled_with = _label_settings(run.labels)
    if labelled_with:
        made["labelled with"] = "\n".join(
            f"{name}: {value}" for name, value in labelled_with.items() if value is not None
        )
    if truth is not None and truth.notes:
        made["notes"] = "\n".join(truth.notes)
    made["galleries"] = (
        f"score from {settings.min_score:g}, box IoU from {settings.match_overlap:g}, {settings.per_gallery} examples "
        f"each, {settings.per_image} of an image, {settings.side} pixels"
    )
    made["versions"] = "\n".join([f"Python {platform.python_version()}", *_versions()])
    return made


def _label_settings(labels: str) -> dict[str, Any]:
    """What a label run wrote down about itself, as far as it is there."""
    folder = labels.rstrip("/").removesuffix("/labels")
    uri = storage.join(folder, "_run", "run.json")
    if not storage.exists(uri):
        return {}
    try:
        settings = json.loads(storage.read_bytes(uri)).get("settings", {})
    except (ValueError, AttributeError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _versions() -> list[str]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:  # this one, where it runs from its folder
            continue
    return versions
