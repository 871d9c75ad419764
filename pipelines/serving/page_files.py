"""The page at `/`: plain files that are read once, and nothing else of the disk."""

import mimetypes
from pathlib import Path

from fastapi import FastAPI, Response

from pipelines.serving.problems import Problem

_FOLDER = Path(__file__).with_name("page")
_INDEX = "index.html"
_KEPT_SECONDS = 300


def add_page(app: FastAPI, folder: Path = _FOLDER) -> None:
    """`/` is the folder's index.html, `/page/NAME` its other files, in folders of their own too."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def answer(name: str) -> Response:
        if name not in files:
            raise Problem(404, "no such file of the page")
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(files[name], media_type=media_type, headers={"Cache-Control": f"max-age={_KEPT_SECONDS}"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return answer(_INDEX)

    @app.get("/page/{name:path}", include_in_schema=False)
    async def file(name: str) -> Response:
        return answer(name)
