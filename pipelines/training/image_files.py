"""The image files of a data set, read from object stores as patiently as labelling reads: `storage.*` says how often a
request is tried, and how long."""

from typing import Any

from maskrcnn_core.data.files import MOST_IMAGE_BYTES, Folder, has_scheme
from maskrcnn_core.errors import ImageError
from pipelines.images.reading import ImageReader


class PatientFiles:
    """Reads the files that annotations name; travels to loader processes and actors, each of which connects by itself.

    Args:
        location: folder or URI that the names are relative to.
    """

    def __init__(self, location: str) -> None:
        self._folder = Folder(location)
        self._reader = ImageReader(MOST_IMAGE_BYTES)

    def __reduce__(self) -> tuple[type["PatientFiles"], tuple[Any, ...]]:
        return type(self), (self._folder.location,)  # a reader counts what its own process is refused

    def path(self, name: str) -> str:
        """Where the file `name` lies."""
        return self._folder.path(name)

    def read(self, name: str) -> bytes:
        """The bytes of the file `name`, relative to the folder unless it is absolute or has a scheme.

        Raises:
            OSError: a local file is missing (FileNotFoundError) or cannot be read.
            ImageError: a remote one, after all tries.
            StorageError: wrong credentials, no such bucket, or storage has refused many images in a row.
        """
        uri = self.path(name)
        if not has_scheme(uri) or uri.startswith("file://"):
            return self._folder.read(name)
        content = self._reader.read(uri)
        if isinstance(content, ImageError):
            raise content
        return content
