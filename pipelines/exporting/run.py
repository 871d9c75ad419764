"""Labels in the formats of other tools, written piece by piece: memory doesn't grow with the number of images.

An export is made under a temporary name and appears whole under its own, or not at all. One for S3 is made on this
machine first, and then uploaded.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from maskrcnn_core.errors import StorageError
from maskrcnn_core.export.formats import load_format
from maskrcnn_core.export.source import (
    ExportFile,
    ExportImage,
    ExportStyle,
    LabelledImage,
    LabelSource,
    Survey,
    is_empty,
    is_too_large,
)
from pipelines import storage
from pipelines.exporting.config import ExportRun
from pipelines.labels.stream import open_labels
from pipelines.storage.s3_settings import applied
from pipelines.storage.writable import require_writable

_COPIED_BYTES = 1 << 20


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


@dataclass
class _Counted:
    """A `LabelSource` that counts the objects that pass by, and keeps those back that cannot be drawn."""

    source: LabelSource
    draws: bool
    objects: int = 0
    empty: int = 0
    renamed: int = 0
    undrawn: int = 0
    survey: Survey = field(init=False)

    def __post_init__(self) -> None:
        self.survey = self.source.survey

    def images(self) -> Iterator[ExportImage]:
        return self.source.images()

    def labelled(self) -> Iterator[LabelledImage]:
        for labelled in self.source.labelled():
            if self.draws and any(is_too_large(detection, labelled.image) for detection in labelled.objects):
                kept = tuple(detection for detection in labelled.objects if not is_too_large(detection, labelled.image))
                self.undrawn += len(labelled.objects) - len(kept)
                labelled = LabelledImage(labelled.image, kept)
            self.objects += len(labelled.objects)
            self.renamed += labelled.image.path != labelled.image.name
            self.empty += sum(is_empty(detection, labelled.image) for detection in labelled.objects)
            yield labelled


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
    source = _Counted(open_labels(run.labels, settings.min_score, settings.categories), draws)
    style = ExportStyle(settings.polygons, settings.tolerance, settings.min_keypoint_score, settings.image_prefix)
    with _workplace(run.output) as folder:
        whole = folder / "export"
        names = _write_files(chosen.files(source, style), whole, chosen.is_folder)
        if chosen.image_folder is not None and settings.link_images:
            _link_images(source, whole / chosen.image_folder)
        for name in names:
            _require_free(run.output.rstrip("/") + name)
        files = tuple(_move_out(whole, name, run.output) for name in names)
    left_out = 0 if chosen.keeps_empty else source.empty
    return ExportSummary(
        images=source.survey.images,
        objects=source.objects - left_out,
        failed=source.survey.failed,
        left_out=left_out,
        files=files,
        renamed=0 if chosen.image_folder is None else source.renamed,
        undrawn=source.undrawn,
        root=source.survey.root,
    )


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


def _write_files(files: Iterator[ExportFile], whole: Path, is_folder: bool) -> list[str]:
    """Writes all files; returns the names that are to be moved."""
    names = []
    for file in files:
        path = whole / file.name if is_folder else whole.with_name(whole.name + file.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8", newline="\n") as stream:
                stream.writelines(file.pieces)
        except (FileExistsError, NotADirectoryError):
            raise StorageError(
                f"labels: two images of the labels would be written as {file.name!r}, because their names differ only "
                "in the ending, or one is a folder of the other; this format has one file for each name, so rename one "
                "of them"
            ) from None
        except OSError as error:
            raise StorageError(f"output: {file.name!r:.200} cannot be written: {error.strerror or error}") from error
        if not is_folder:
            names.append(file.name)
    return [""] if is_folder else names


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
            _upload(path, storage.join(target, str(path.relative_to(made))) if made.is_dir() else target)
    return target


def _upload(path: Path, uri: str) -> None:
    filesystem, key = storage.filesystem_and_path(uri)
    try:
        with path.open("rb") as file, filesystem.open_output_stream(key) as stream:
            shutil.copyfileobj(file, stream, _COPIED_BYTES)
    except OSError as error:
        raise StorageError(f"output: {uri!r} cannot be written: {error}") from error


def _link_images(source: LabelSource, folder: Path) -> None:
    for image in source.images():
        if not storage.is_local(image.uri):
            raise StorageError(
                f"export.link_images: image {image.image_id} is {image.uri!r}; only files of this machine can be linked"
            )
        link = folder / image.path
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            _require_below(link.parent, folder)
            link.symlink_to(storage.filesystem_and_path(image.uri)[1])
        except (OSError, ValueError) as error:  # NUL is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"export.link_images: image {image.image_id}, {image.uri!r:.200}, cannot be linked: {reason}"
            ) from error


def _require_below(folder: Path, root: Path) -> None:
    """A link that stands where a folder is wanted would lead out of the export."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OSError(0, "another image has the name of its folder")
