"""Files and links of an export, written into a folder of this machine or uploaded."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from maskrcnn_core.errors import StorageError
from maskrcnn_core.export.source import ExportFile, ExportImage, LabelSource, file_text
from pipelines import storage
from pipelines.images.tar_shards import member_of

_COPIED_BYTES = 1 << 20


def write_files(files: Iterable[ExportFile], whole: Path, is_folder: bool) -> list[str]:
    """Write all files.

    Args:
        files: of an export.
        whole: folder that they go to, or what the name of a single file begins with.
        is_folder: which of the two.

    Returns:
        What is to be moved: the ends of the names of single files, or nothing but the folder.

    Raises:
        StorageError: two have one name, or one cannot be written.
    """
    names = []
    for file in files:
        path = whole / file.name if is_folder else whole.with_name(whole.name + file.name)
        write_new(path, file.name, file_text(file.pieces))
        if not is_folder:
            names.append(file.name)
    return [""] if is_folder else names


def write_new(path: Path, name: str, text: Iterator[str]) -> None:
    """Write a file that is not there yet; `name` is what it is called in errors.

    Raises:
        StorageError: it is there already, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as stream:
            stream.writelines(text)
    except (FileExistsError, NotADirectoryError):
        raise two_of_one_name(name) from None
    except OSError as error:
        raise StorageError(f"output: {name!r:.200} cannot be written: {error.strerror or error}") from error


def two_of_one_name(name: str) -> StorageError:
    """The error of two images that would have one file."""
    return StorageError(
        f"labels: two images of the labels would be written as {name!r}, because their names differ only "
        "in the ending, or one is a folder of the other; this format has one file for each name, so rename one "
        "of them"
    )


def upload(path: Path, uri: str) -> None:
    """Copy a file of this machine to S3.

    Raises:
        StorageError: it cannot be written.
    """
    filesystem, key = storage.filesystem_and_path(uri)
    try:
        with path.open("rb") as file, filesystem.open_output_stream(key) as stream:
            shutil.copyfileobj(file, stream, _COPIED_BYTES)
    except OSError as error:
        raise StorageError(f"output: {uri!r} cannot be written: {error}") from error


def link_images(source: LabelSource, folder: str, *, again: bool = False) -> None:
    """Link every image into a folder; on S3, which has no links, put a copy there.

    Args:
        source: of the images.
        folder: uri.
        again: links may be there already, from an attempt that was broken off.

    Raises:
        StorageError: an image is not of this machine, or cannot be linked.
    """
    for image in source.images():
        if not storage.is_local(image.uri) or member_of(image.uri) is not None:
            raise StorageError(
                f"export.link_images: image {image.image_id} is {image.uri!r}; only files of this machine can be linked"
            )
        try:
            if storage.is_local(folder):
                _link(image, Path(folder), again)
            elif (file := Path(_target(image))).is_file():
                upload(file, storage.join(folder, image.path))
        except (OSError, ValueError) as error:  # NUL is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"export.link_images: image {image.image_id}, {image.uri!r:.200}, cannot be linked: {reason}"
            ) from error


def _target(image: ExportImage) -> str:
    path: str = storage.filesystem_and_path(image.uri)[1]
    return path


def _link(image: ExportImage, folder: Path, again: bool) -> None:
    link = folder / image.path
    link.parent.mkdir(parents=True, exist_ok=True)
    _require_below(link.parent, folder)
    if again and link.is_symlink() and str(link.readlink()) == _target(image):
        return
    link.symlink_to(_target(image))


def _require_below(folder: Path, root: Path) -> None:
    """A link that stands where a folder is wanted would lead out of the export."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OSError(0, "another image has the name of its folder")
