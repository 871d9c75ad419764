"""Sizes of images that their annotation file does not say, from the pictures themselves."""

import functools

from maskrcnn_core.data.coco.sections import SizeOf
from maskrcnn_core.data.decode import image_size
from maskrcnn_core.data.files import Folder
from maskrcnn_core.errors import ImageError
from pipelines.images.split_names import names_below


def picture_sizes(images: str) -> SizeOf:
    """A function from a file name to (width, height) in pixels as stored; None where the picture cannot be read.

    Each picture is read whole, so a file that states the sizes is ready much sooner.

    Args:
        images: folder or URI that the names are relative to.
    """
    folder = Folder(images)
    below = functools.cache(lambda split: names_below(images, [f"{split}/name"])[0] == "name")

    def size_of(name: str, named_by_url: bool) -> tuple[int, int] | None:
        split, _, rest = name.partition("/")
        if named_by_url and rest and below(split):
            name = rest
        try:
            height, width = image_size(folder.read(name), apply_exif=False)
        except (OSError, ValueError, ImageError):
            return None
        return width, height

    return size_of
