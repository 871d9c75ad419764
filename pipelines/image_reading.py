"""The bytes of one image, local or on S3: tried again where that helps, a failed row where the image is at fault, and
the end of the run where no other image could be read either."""

import threading

from maskrcnn_core.errors import ImageError, StorageError
from pipelines import storage
from pipelines.s3_client import why_denied
from pipelines.s3_settings import explain, is_forbidden, is_hopeless

# So many images in a row that storage refuses, with none in between, are no fault of the images.
_MOST_REFUSED_IN_A_ROW = 16

_LONGEST_ERROR = 300


class ImageReader:
    """Reads images in many threads and notices when storage itself is out of order.

    Args:
        most_bytes: larger files are `too_large`.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._refused = 0
        self._lock = threading.Lock()

    def read(self, uri: str) -> bytes | ImageError:
        """An image file's bytes, or why there are none.

        Raises:
            StorageError: wrong credentials, no such bucket, or storage has refused many images in a row.
        """
        try:
            content = storage.patiently(uri, lambda: _read(uri, self._most_bytes))
        except OSError as error:
            text = why_denied(uri) if is_forbidden(error) and not storage.is_local(uri) else str(error)
            if is_hopeless(text):
                raise StorageError(f"{uri}: {explain(text)}") from error
            return self._refusal(uri, error)
        with self._lock:
            self._refused = 0
        return content

    def _refusal(self, uri: str, error: OSError) -> ImageError:
        forbidden = is_forbidden(error)
        reason = f"access denied: {one_line(error)}" if forbidden else one_line(error)
        with self._lock:
            self._refused += not storage.is_local(uri)
            refused = self._refused
        if refused >= _MOST_REFUSED_IN_A_ROW:
            mend = "check the rights of these credentials" if forbidden else "check the network and the S3 server"
            raise StorageError(
                f"{uri}: {refused} images in a row could not be read, the last one: {reason}; {mend}, then repeat the "
                "command: it goes on where it stopped"
            )
        return ImageError("unreadable", reason)


def _read(uri: str, most_bytes: int) -> bytes | ImageError:
    try:
        filesystem, path = storage.filesystem_and_path(uri)
        with filesystem.open_input_file(path) as stream:
            size = stream.size()
            if size > most_bytes:
                return ImageError("too_large", f"the file has {size} bytes, at most {most_bytes} are read")
            content: bytes = stream.read()
            return content
    except FileNotFoundError:
        return ImageError("missing", "no such file")
    except StorageError as error:
        return ImageError("unreadable", one_line(error))


def one_line(error: BaseException) -> str:
    """Kind and text of an error, shortened, as a record's `error`."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST_ERROR]
