"""The bytes of one image, local or in an object store: tried again where that helps, a failed row where the image is at
fault, and the end of the run where no other image could be read either."""

import os
import threading
from urllib.parse import unquote

from maskrcnn_core.data.files import (
    MOST_IMAGE_BYTES,
    TooManyBytes,
    local_path,
    read_local,
    read_local_range,
    require_bytes,
)
from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.printable import printable
from pipelines import storage
from pipelines.images.parquet_images import RowGroups, parquet_row_of
from pipelines.images.tar_shards import TAR_EXTENSION, Member, member_of
from pipelines.storage.object_stores import read_object, read_object_range
from pipelines.storage.s3_settings import error_code, explain, is_forbidden, is_hopeless

# So many images in a row that storage refuses, with none in between, are no fault of the images.
_MOST_REFUSED_IN_A_ROW = 16

_LONGEST_ERROR = 300


class ImageReader:
    """Reads images in many threads and notices when storage itself is out of order.

    Args:
        most_bytes: larger files are `too_large`.
        below: the only folder that images are read of; empty = wherever they lie.
    """

    def __init__(self, most_bytes: int, below: str = "") -> None:
        self._most_bytes, self._below = most_bytes, below
        self._groups = RowGroups()
        self._refused = 0
        self._lock = threading.Lock()

    def read(self, uri: str) -> bytes | ImageError:
        """An image file's bytes, or why there are none.

        Raises:
            StorageError: wrong credentials, no such bucket, or storage has refused many images in a row.
        """
        if self._below and not storage.below(uri, self._below):
            return ImageError("unreadable", f"refused: it lies outside of image_root, {printable(self._below)}")
        try:
            content: bytes | ImageError = storage.patiently(uri, lambda: self._content(uri))
        except FileNotFoundError:
            content = ImageError("missing", f"no such file{_other_spelling(uri)}")
        except TooManyBytes as error:
            content = ImageError("too_large", str(error))
        except ImageError as error:  # of a file that holds many images
            content = error
        except OSError as error:
            if not storage.is_local(uri):
                return self._refusal(uri, error)
            content = ImageError("unreadable", one_line(error))
        except StorageError as error:  # of the way to the object, as its bucket's region; or of its name
            if isinstance(error.__cause__, OSError) and not storage.is_local(uri):
                return self._refusal(uri, error.__cause__)
            content = ImageError("unreadable", one_line(error))
        except Exception as error:  # whatever a library makes of a name: it is this image's fault alone
            content = ImageError("unreadable", one_line(error))
        with self._lock:
            self._refused = 0
        return content

    def _content(self, uri: str) -> bytes:
        if (row := parquet_row_of(uri)) is not None:
            return self._groups.read(row, self._most_bytes)
        return _read(uri, self._most_bytes)

    def late(self, uri: str, seconds: float) -> ImageError:
        """The failure of an image whose reading hangs.

        Raises:
            StorageError: it is one of many in a row.
        """
        return self._refused_once_more(
            uri, f"reading took longer than {seconds:g} s (label.image_timeout)", "check the network, the drive"
        )

    def _refusal(self, uri: str, error: OSError) -> ImageError:
        code = error_code(error, uri)
        if is_hopeless(code):
            raise StorageError(f"{uri}: {explain(code)}") from error
        if is_forbidden(code):
            reason, mend = f"access denied: {one_line(error)}", "check the rights of these credentials"
        else:
            reason, mend = one_line(error), f"check the network and the {_server(uri)}"
        return self._refused_once_more(uri, reason, mend)

    def _refused_once_more(self, uri: str, reason: str, mend: str) -> ImageError:
        with self._lock:
            self._refused += 1
            refused = self._refused
        if refused >= _MOST_REFUSED_IN_A_ROW:
            raise StorageError(
                f"{uri}: {refused} images in a row could not be read, the last one: {reason}; {mend}, then repeat the "
                "command: it goes on where it stopped"
            )
        return ImageError("unreadable", reason)


def read_image(uri: str) -> bytes:
    """The bytes of one image that a row or a file names, for what looks at a few.

    Raises:
        ImageError: `missing`, `unreadable` or `too_large`.
        StorageError: wrong credentials, no such bucket.
    """
    content = ImageReader(MOST_IMAGE_BYTES).read(uri)
    if isinstance(content, ImageError):
        raise ImageError(content.status, f"{printable(uri)}: {content}")
    return content


def _read(uri: str, most_bytes: int) -> bytes:
    if (member := member_of(uri)) is not None:
        return _read_member(member, most_bytes)
    if uri.lower().endswith(TAR_EXTENSION):
        reason = "a tar file that is torn, or none; the images that were found in it have rows of their own"
        raise ImageError("unreadable", reason)
    if storage.is_local(uri):
        return read_local(storage.filesystem_and_path(uri)[1], most_bytes)
    return read_object(uri, most_bytes)


def _read_member(member: Member, most_bytes: int) -> bytes:
    require_bytes(member.length, most_bytes)
    if storage.is_local(member.shard):
        path = storage.filesystem_and_path(member.shard)[1]
        content = read_local_range(path, member.offset, member.length)
    else:
        content = read_object_range(member.shard, member.offset, member.length)
    if len(content) < member.length:
        reason = f"the tar file ends within it: {len(content)} of {member.length} bytes are there"
        raise ImageError("unreadable", reason)
    return content


def _server(uri: str) -> str:
    return "S3 server" if uri.startswith("s3://") else "store"


def _other_spelling(uri: str) -> str:
    """A hint where a local file is there under the name that another system's spelling of it means."""
    path = local_path(uri)
    if not storage.is_local(uri) or "\0" in path:
        return ""
    if "\\" in path and os.path.isfile(path.replace("\\", "/")):
        return "; there is one with / in place of \\: correct the names"
    if "%" in path and os.path.isfile(unquote(path)):
        return "; there is one without %-codes: correct the names"
    return ""


def one_line(error: BaseException) -> str:
    """Kind and text of an error, shortened, as a record's `error`."""
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:_LONGEST_ERROR]
