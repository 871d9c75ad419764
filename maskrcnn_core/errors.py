"""Errors that a user can mend. Each message says what, where, got, expected and how to mend it.

The tree::

    UserError(ValueError)      anything below: `jobs` prints it as one line and exits with 2
    |- ConfigError             a setting has a wrong name, type or range, or two settings contradict
    |- ImageError              one image cannot be used; carries the record `status` (it never ends a run)
    |- AnnotationError         an annotation file, image entry or annotation is wrong; names its id
    |- CheckpointError         weights or their configuration cannot be read
    |- StorageError            a path is missing, not readable, or already holds another run
"""

from typing import Literal

ImageStatus = Literal["missing", "unreadable", "unsupported", "too_large", "failed"]


class UserError(ValueError):
    """Base of all errors whose cause lies in what the user gave."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of range or in conflict with another one."""


class ImageError(UserError):
    """One image cannot be used.

    Attributes:
        status: the record's `status`: `missing` (no such object), `unreadable` (damaged or not an image),
            `unsupported` (a format or pixel layout we do not read), `too_large` (over the pixel limit),
            `failed` (the detector could not process it).
        image_id: the COCO id of an annotated image; None where it has none, or nobody has told.
    """

    def __init__(self, status: ImageStatus, message: str, image_id: int | None = None) -> None:
        super().__init__(message)
        self.status: ImageStatus = status
        self.image_id = image_id

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str, int | None]]:
        return type(self), (self.status, str(self), self.image_id)  # errors travel between processes


class AnnotationError(UserError):
    """An annotation file, or an entry in it, is wrong."""


class CheckpointError(UserError):
    """Weights, or the configuration beside them, cannot be read or do not fit."""


class StorageError(UserError):
    """A file or folder is missing, unreadable or already taken by another run."""
