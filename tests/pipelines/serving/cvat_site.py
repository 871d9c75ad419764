"""A CVAT server as far as its SDK needs one to annotate a task of pictures."""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from tests.pipelines.serving.http_site import answering

TASK = 137
_DATE = "2026-11-30T12:00:00Z"


class CvatSite:
    """One task.

    Attributes:
        labels: of the task, as CVAT's interface gives them.
        pictures: its frames.
        created: annotations that were sent.
    """

    def __init__(self, pictures: Sequence[Image.Image], labels: Sequence[dict[str, Any]]) -> None:
        self.pictures, self.labels = pictures, labels
        self.created: list[dict[str, Any]] = []
        self.address = ""

    def get(self, path: str) -> tuple[str, bytes] | None:
        """Media type and content."""
        size = len(self.pictures)
        if path == f"/api/tasks/{TASK}/data":
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as chunk:
                for number, picture in enumerate(self.pictures):
                    with chunk.open(f"{number:06d}.png", "w") as frame:
                        picture.save(frame, "PNG")
            return "application/zip", archive.getvalue()
        documents: dict[str, Any] = {
            f"/api/tasks/{TASK}": {
                "id": TASK,
                "name": "pictures",
                "mode": "annotation",
                "size": size,
                "data_chunk_size": size,
                "data_original_chunk_type": "imageset",
                "updated_date": _DATE,
                "organization": None,
                "jobs": {"url": "", "count": 1, "completed": 0, "validation": 0},
                "labels": {"url": ""},
            },
            "/api/labels": {"count": len(self.labels), "next": None, "previous": None, "results": self.labels},
            f"/api/tasks/{TASK}/data/meta": {
                "chunk_size": size,
                "chunks_updated_date": _DATE,
                "size": size,
                "image_quality": 100,
                "start_frame": 0,
                "stop_frame": size - 1,
                "frame_filter": "",
                "deleted_frames": [],
                "frames": [
                    {"width": one.width, "height": one.height, "name": f"{number}.png", "related_files": 0}
                    for number, one in enumerate(self.pictures)
                ],
            },
        }
        document = documents.get(path)
        return None if document is None else ("application/json", json.dumps(document).encode())


@contextmanager
def running_cvat(pictures: Sequence[Image.Image], labels: Sequence[dict[str, Any]]) -> Iterator[CvatSite]:
    site = CvatSite(pictures, labels)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = site.get(urlsplit(self.path).path.rstrip("/"))
            self.reply(404, "application/json", b"{}") if found is None else self.reply(200, *found)

        def do_PATCH(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            site.created.append(document)
            self.reply(
                200, "application/json", json.dumps({"version": 1, "tags": [], "shapes": [], "tracks": []}).encode()
            )

        def reply(self, status: int, media_type: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with answering(Handler) as site.address:
        yield site
