"""The page at `/`: files of this package as they are, and generated pictures to try it with.

The page asks this server only (`v1/models`, `v1/detect`), by addresses relative to its own, and its policy lets a
browser load nothing from elsewhere and run nothing that stands in the HTML.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from maskrcnn_core.config.person import COCO_KEYPOINTS, PERSON_SKELETON
from maskrcnn_core.data.generated.pictures import generate_picture
from maskrcnn_core.drawing.keypoints import DOUBTFUL
from pipelines.serving.problems import Problem

PAGE_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
        ),
        "cache-control": "no-cache",  # asked for again each time, and answered by 304: a new release shows at once
    }
)
"""Of every answer of the page's routes; the others are those that the gate gives to all answers."""

_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
EXAMPLE_SEED, EXAMPLE_SIZE = 5, (420, 640)
"""Of the generated pictures that can be tried."""
_EXAMPLES = {2: "people and stars", 3: "a person and a ring", 19: "people and rings", 21: "people, a ring and a cross"}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    tag: str


def page_routes() -> Sequence[BaseRoute]:
    """Routes of the page, all of them readable by everybody: `/` and what lies below `/page/`."""
    return [
        Route("/", _index),
        Route("/page/facts.json", _facts),
        Route("/page/examples/{number:int}.jpg", _example),
        Route("/page/{name}", _packaged),
    ]


def _index(request: Request) -> Response:
    return _answer(request, _files()[_INDEX])


def _packaged(request: Request) -> Response:
    return _answer(request, _files().get(request.path_params["name"]))


def _example(request: Request) -> Response:
    number = request.path_params["number"]
    return _answer(request, _example_picture(number) if number in _EXAMPLES else None)


def _facts(request: Request) -> Response:
    """What the page's scripts would otherwise repeat."""
    examples = [{"address": f"page/examples/{number}.jpg", "title": title} for number, title in _EXAMPLES.items()]
    facts = {"keypoints": COCO_KEYPOINTS, "skeleton": PERSON_SKELETON, "doubtful": DOUBTFUL, "examples": examples}
    return JSONResponse(facts, headers=dict(PAGE_HEADERS))


def _answer(request: Request, file: _File | None) -> Response:
    if file is None:
        raise Problem(404, "no such file of the page")
    headers = {**PAGE_HEADERS, "etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


@cache
def _files() -> Mapping[str, _File]:
    """The package's files that a browser may have, by name."""
    files = {}
    for entry in resources.files(__package__).iterdir():
        media_type = _TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if media_type is not None:
            files[entry.name] = _file(entry.read_bytes(), media_type)
    return files


@cache
def _example_picture(number: int) -> _File:
    stream = io.BytesIO()
    picture = generate_picture(number, seed=EXAMPLE_SEED, image_size=EXAMPLE_SIZE)
    Image.fromarray(picture.pixels).save(stream, "JPEG", quality=90)
    return _file(stream.getvalue(), "image/jpeg")


def _file(content: bytes, media_type: str) -> _File:
    return _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
