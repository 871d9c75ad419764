"""The images of a request: the body as it is, parts of a form, or names of objects that may be fetched."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from maskrcnn_core.data.decode import image_size
from maskrcnn_core.errors import ImageError, StorageError
from pipelines.images.reading import ImageReader
from pipelines.serving.problems import Problem, of_image

_FORM = "multipart/form-data"
_JSON = "application/json"
_LONGEST_NAME = 1024


@dataclass(frozen=True)
class Upload:
    """An image that was sent, or named.

    Attributes:
        content: the file; an error in place of one.
        uri: its name; empty where it has none.
    """

    content: bytes | ImageError
    uri: str = ""


@dataclass(frozen=True)
class UploadLimits:
    """Of images.

    Attributes:
        max_images: of a request.
        max_bytes: of a file.
        max_pixels: by its header.
        uris: folders whose images may be named.
    """

    max_images: int
    max_bytes: int
    max_pixels: int
    uris: tuple[str, ...]


async def read_uploads(
    request: Any, limits: UploadLimits, fetch: "Callable[[str], bytes | ImageError]"
) -> list[Upload]:
    """The images of a request of starlette, one or more.

    Args:
        request: its body is read here.
        limits: of images.
        fetch: reads an object; called in another thread.

    Raises:
        Problem: there is none, there are too many, or what is there is no upload.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == _FORM:
        uploads = await _of_form(request, limits)
    elif media_type == _JSON:
        uploads = await _named(request, limits, fetch)
    else:
        uploads = [Upload(await request.body())]
        if not uploads[0].content:
            raise Problem(400, "the body is empty; expected an image file, or a form with a part `image`")
    if len(uploads) > limits.max_images:
        raise Problem(413, f"{len(uploads)} images in one request, expected at most {limits.max_images}")
    return uploads


def require_image(upload: Upload, max_pixels: int) -> bytes:
    """The file, if by its header it is an image within the limit; nothing of it is decoded.

    Raises:
        Problem: 404, 413, 415 or 422.
    """
    if isinstance(upload.content, ImageError):
        raise of_image(upload.content)
    try:
        height, width = image_size(upload.content, apply_exif=False)
    except ImageError as error:
        raise of_image(error) from None
    if height * width > max_pixels:
        raise Problem(413, f"{width} x {height} = {height * width:,} pixels, expected at most {max_pixels:,}")
    return upload.content


def object_reader(limits: UploadLimits) -> Callable[[str], bytes | ImageError]:
    """What fetches objects below the folders that are allowed; nothing else has a way in."""
    reader = ImageReader(limits.max_bytes)

    def fetch(uri: str) -> bytes | ImageError:
        try:
            return reader.read(uri)
        except StorageError:  # of credentials or buckets: the server's own affair
            return ImageError("missing", "cannot be fetched")

    return fetch


def is_allowed(uri: str, folders: Sequence[str]) -> bool:
    """Whether a name lies below one of the folders, whatever `..`, `%2e` or blanks it holds."""
    plain = uri.isprintable() and not set(uri) & set("\\%?#*") and "/../" not in f"{uri}/" and "/./" not in f"{uri}/"
    return plain and any(uri.startswith(f"{folder.rstrip('/')}/") for folder in folders)


async def _of_form(request: Any, limits: UploadLimits) -> list[Upload]:
    from starlette.datastructures import UploadFile

    try:
        async with request.form(max_files=limits.max_images + 1, max_fields=1) as form:
            uploads = []
            for name, part in form.multi_items():
                if name != "image" or not isinstance(part, UploadFile):
                    raise Problem(422, f"a part {name[:50]!r} of the form, expected files in parts named `image`")
                uploads.append(Upload(await part.read(), (part.filename or "")[:_LONGEST_NAME]))
    except Problem:
        raise
    except Exception as error:
        raise _as_problem(error) from None
    if not uploads:
        raise Problem(400, "the form has no part `image`")
    return uploads


def _as_problem(error: Exception) -> Exception:
    """A form that cannot be parsed is the client's; anything else is not."""
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException

    if isinstance(error, HTTPException | MultiPartException):
        reason = getattr(error, "detail", None) or getattr(error, "message", "")
        return Problem(400, f"the form cannot be read: {reason}")
    return error


async def _named(request: Any, limits: UploadLimits, fetch: "Callable[[str], bytes | ImageError]") -> list[Upload]:
    import asyncio

    try:
        document = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Problem(400, 'the body is no JSON; expected such as {"uri": "s3://bucket/folder/image.jpg"}') from None
    named = document.get("uris", [document.get("uri")]) if isinstance(document, dict) else None
    if not isinstance(named, list) or not named or not all(isinstance(uri, str) for uri in named):
        raise Problem(422, 'no names in it; expected {"uri": "s3://..."} or {"uris": ["s3://...", ...]}')
    if len(named) > limits.max_images:
        raise Problem(413, f"{len(named)} images in one request, expected at most {limits.max_images}")
    for uri in named:
        if not is_allowed(uri, limits.uris):
            raise Problem(403, "the name lies outside of the folders that may be read (serve.uris)")
    contents = await asyncio.gather(*(asyncio.to_thread(fetch, uri) for uri in named))
    return [Upload(content, uri) for content, uri in zip(contents, named, strict=True)]
