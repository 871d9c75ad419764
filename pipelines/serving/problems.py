"""What a client is told in place of an answer: RFC 9457 problem documents, with one line of detail."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from maskrcnn_core.errors import ImageError, ImageStatus
from maskrcnn_core.printable import printable

MEDIA_TYPE = "application/problem+json"

_LONGEST_DETAIL = 500

_STATUS_OF_IMAGE: Mapping[ImageStatus, int] = {
    "missing": 404,
    "unreadable": 422,
    "unsupported": 415,
    "too_large": 413,
    "failed": 500,
}


class Problem(Exception):
    """A request that is not answered as asked.

    Attributes:
        status: of HTTP.
        detail: what, got, expected.
        headers: beside the document, such as Retry-After.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    @property
    def line(self) -> str:
        """The detail in one line of bounded length."""
        return printable(" ".join(self.detail.split()))[:_LONGEST_DETAIL]

    def document(self, request_id: str, path: str) -> bytes:
        """The body; RFC 9457, section 3.1. Below `/v2` it has `error` too, where the Open Inference Protocol looks."""
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.line,
            "request_id": request_id,
        }
        if path.startswith("/v2"):
            content["error"] = self.line
        return json.dumps(content, ensure_ascii=False).encode()


def too_busy(detail: str, retry_after: float, status: int = 503) -> Problem:
    """Come again after so many seconds, rounded up."""
    return Problem(status, detail, {"Retry-After": str(max(1, math.ceil(retry_after)))})


def service_failed() -> Problem:
    """Of an error that is ours: what it says stays in the log."""
    return Problem(500, "the service failed; its log has the reason under this request's id")


def of_image(error: ImageError, name: str = "") -> Problem:
    """Why an image cannot be looked at."""
    return Problem(_STATUS_OF_IMAGE[error.status], f"{name}: {error}" if name else str(error))
