"""Labels in the formats of other tools, written piece by piece: memory doesn't grow with the number of images.

An export is made under a temporary name and appears whole under its own, or not at all. One for S3 is made on this
machine first, and then uploaded. Labels in many files are exported by tasks (`part`), and put together here.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maskrcnn_core.errors import StorageError
from maskrcnn_core.export.formats import load_format
from maskrcnn_core.export.source import ExportStyle
from pipelines import storage
from pipelines.exporting.config import ExportRun
from pipelines.exporting.counted import CountedSource, Counts
from pipelines.exporting.part import PartPlace, PartWork, export_part, joined_files
from pipelines.exporting.writing import link_images, upload, write_files
from pipelines.labels.files import label_files
from pipelines.labels.parts import HERE, Readers, readers_for
from pipelines.labels.stream import LabelFiles, open_label_parts
from pipelines.storage.s3_settings import applied
from pipelines.storage.writable import require_writable


@dataclass(frozen=True)
class ExportSummary:
    """What an export came to.

    Attributes:
        images: exported, with or without objects.
        objects: exported.
        failed: images left out because they failed.
        left_out: objects with nothing to draw, that the format has no way to say.
        renamed: images with another name in the export, because no file below its folder can have theirs.
        files: uris written; of a folder only the folder.
    """

    images: int
    objects: int
    failed: int
    left_out: int
    files: tuple[str, ...]
    renamed: int = 0
    undrawn: int = 0
    root: str = ""


def export(run: ExportRun) -> ExportSummary:
    """Write the labels of a run in `run.format`.

    Raises:
        StorageError: there are no labels, the output exists or cannot be written, or two images get one name.
        ConfigError: a category that the labels don't have.
    """
    with applied(run.storage):
        return _export(run)


def _export(run: ExportRun) -> ExportSummary:
    chosen, settings = load_format(run.format), run.export
    _require_free(run.output)
    require_writable(run.output)
    draws = chosen.draws == "always" or (chosen.draws == "outlines" and settings.polygons)
    style = ExportStyle(settings.polygons, settings.tolerance, settings.min_keypoint_score, settings.image_prefix)
    images = chosen.image_folder if settings.link_images else None
    files = label_files(run.labels)
    with readers_for(len(files), run.cluster, run.storage) as readers:
        parts = open_label_parts(files, settings.min_score, settings.categories, readers)
        with _workplace(run.output) as folder:
            whole = folder / "export"
            if readers is HERE:
                (source,) = (CountedSource(part, draws) for part in parts)
                names = write_files(chosen.files(source, style), whole, chosen.is_folder)
                if images is not None:
                    link_images(source, str(whole / images))
                counts = source.counts
            else:
                names, counts = _export_parts(run, parts, readers, whole, PartWork(run.format, style, draws, images))
            for name in names:
                if readers is HERE or not _is_filled_by_tasks(run):
                    _require_free(run.output.rstrip("/") + name)
            written = tuple(_move_out(whole, name, run.output) for name in names)
    left_out = 0 if chosen.keeps_empty else counts.empty
    survey = parts[0].survey
    return ExportSummary(
        images=survey.images,
        objects=counts.objects - left_out,
        failed=survey.failed,
        left_out=left_out,
        files=written,
        renamed=0 if chosen.image_folder is None else counts.renamed,
        undrawn=counts.undrawn,
        root=survey.root,
    )


def _export_parts(
    run: ExportRun, parts: Sequence[LabelFiles], readers: Readers, whole: Path, work: PartWork
) -> tuple[list[str], Counts]:
    """Writes all files by tasks, but for what is left to be moved out."""
    is_local = storage.is_local(run.output)
    pieces = str(whole.with_name("pieces")) if is_local else f"{run.output.rstrip('/')}.{uuid.uuid4().hex}.tmp"
    place = PartPlace(pieces, str(whole) if is_local else run.output)
    shared = readers.share((work, place))
    try:
        written = list(readers.in_order(export_part, [(number, part, shared) for number, part in enumerate(parts)]))
        names = write_files(joined_files([one.files for one in written]), whole, load_format(run.format).is_folder)
        return names, sum((one.counts for one in written), Counts())
    except BaseException:
        if _is_filled_by_tasks(run):
            storage.delete_folder(run.output)
        raise
    finally:
        storage.delete_folder(pieces)


def _is_filled_by_tasks(run: ExportRun) -> bool:
    """The files of single images go where they belong at once: no disk of this machine, and no rename, is between."""
    return load_format(run.format).is_folder and not storage.is_local(run.output)


def _require_free(output: str) -> None:
    if storage.exists(output):
        raise StorageError(f"output: {output!r} exists already; choose another name, or delete it first")


@contextmanager
def _workplace(output: str) -> Iterator[Path]:
    """A temporary folder: beside a local output, so that a rename moves the export to its place."""
    if not storage.is_local(output):
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    target = Path(storage.filesystem_and_path(output)[1])
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"output: {output!r} cannot be written: {error.strerror}; choose another place") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_out(whole: Path, name: str, output: str) -> str:
    """Moves the file, or the folder, that is to be `output` + `name`; returns where it is."""
    made = whole.with_name(whole.name + name)
    target = output.rstrip("/") + name
    if storage.is_local(output):
        try:
            os.replace(made, storage.filesystem_and_path(target)[1])
        except OSError as error:
            raise StorageError(f"output: {target!r} cannot be written: {error.strerror}") from error
        return target
    for path in sorted(made.rglob("*")) if made.is_dir() else [made]:
        if path.is_file():
            upload(path, storage.join(target, str(path.relative_to(made))) if made.is_dir() else target)
    return target
