"""Sizes of images that their annotation file does not say, from the pictures themselves."""

from collections.abc import Callable

from maskrcnn_core.data.decode import image_size
from maskrcnn_core.data.files import Folder
from maskrcnn_core.errors import ImageError
from pipelines.split_names import names_below


def picture_sizes(images: str) -> Callable[[str], tuple[int, int] | None]:
    """A function from a file name to (width, height) in pixels as stored; None where the picture cannot be read.

    Args:
        images: folder or URI that the names are relative to.
    """
    folder = Folder(images)

    def size_of(name: str) -> tuple[int, int] | None:
        (name,) = names_below(images, [name])
        try:
            height, width = image_size(folder.read(name), apply_exif=False)
        except (OSError, ValueError, ImageError):
            return None
        return width, height

    return size_of
