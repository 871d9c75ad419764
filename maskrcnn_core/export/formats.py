"""The formats in which labels are exported: a file beside this one for each, of the same name.

Such a file begins with a line that says what it writes, which `--help` shows, and declares `FORMAT`. It is imported
when labels are written, so that `--help` and a mistake in a setting are answered without numpy and Arrow.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from maskrcnn_core.export.source import ExportFile, ExportStyle, LabelSource

FormatName = Literal["coco", "coco_dataset", "yolo", "label_studio", "cvat", "fiftyone"]
"""The list: a new format is a file and its name here."""
FORMATS: tuple[FormatName, ...] = get_args(FormatName)

_PACKAGE = "maskrcnn_core.export"


@dataclass(frozen=True)
class Written:
    """What an export has come to, as far as one has to know it to use it.

    Attributes:
        files: uris, in the order they were written; of a folder only the folder.
        images: folder that all images are in.
        has_images: the images are linked into the export.
    """

    files: tuple[str, ...]
    images: str
    has_images: bool = False


@dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        files: its files, of a source and in a style.
        use: what to do with what was written, a line; commands and code in it run as they stand there.
        is_folder: the output is a folder of the files; else a file.
        keeps_empty: objects with nothing to draw are written as well.
        draws: the pixels of masks are looked at; else only where outlines are asked for, or never.
        image_folder: where in the export its reader looks for the images, by `ExportImage.path`, and where they can be
            linked to; None = it does not.
    """

    files: "Callable[[LabelSource, ExportStyle], Iterator[ExportFile]]"
    use: Callable[[Written], str]
    is_folder: bool = False
    keeps_empty: bool = False
    draws: Literal["always", "outlines", "never"] = "always"
    image_folder: str | None = None


def load_format(name: FormatName) -> ExportFormat:
    """What the format's file declares."""
    declared: ExportFormat = import_module(f"{_PACKAGE}.{name}").FORMAT
    return declared


def format_meanings() -> dict[FormatName, str]:
    """What each format is, from its file's first line; nothing is imported."""
    return {name: _first_line(name) for name in FORMATS}


def _first_line(name: FormatName) -> str:
    text = files(_PACKAGE).joinpath(f"{name}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, name
    return docstring.splitlines()[0].rstrip(".")
