"""Label Studio's ML backend: live predictions while people label.

Protocol: label_studio_sdk and label-studio-ml-backend; Label Studio asks `health`, `setup` and `predict` below the
address that was given to it, here `/label-studio`, or `/label-studio/NAME` for a model that is not the first. Nothing
is kept between requests: every one brings the project's labelling interface along.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response

from maskrcnn_core.errors import ImageError
from pipelines.serving.http_api import DetectionApi, all_of
from pipelines.serving.label_studio.interface import LabellingInterface, labelling_interface
from pipelines.serving.label_studio.pictures import LabelStudioSite, TaskPictures
from pipelines.serving.label_studio.predictions import prediction
from pipelines.serving.problems import Problem, of_image
from pipelines.serving.renderings import to_json
from pipelines.serving.uploads import Upload, require_image

_FOLDERS = ("/label-studio", "/label-studio/{model}")
_MOST_TASKS = 1000
_AT_ONCE = 8  # pictures of a request in memory

logger = logging.getLogger("maskrcnn.serving")


def add_label_studio(app: FastAPI, api: DetectionApi, site: LabelStudioSite, min_score: float) -> None:
    """The routes below `/label-studio`.

    Args:
        app: that gets them.
        api: answers.
        site: where the pictures of tasks are.
        min_score: weaker objects are not predicted.
    """
    pictures = TaskPictures(site, api.settings.uploads, api.fetch)
    for folder in _FOLDERS:
        _add_health(app, api, folder)
        _add_predict(app, api, folder, pictures, min_score)


def _add_health(app: FastAPI, api: DetectionApi, folder: str) -> None:
    @app.get(f"{folder}/health", include_in_schema=False)
    async def health(request: Request) -> Response:
        name, _ = api.client(request.path_params.get("model"))
        return _json({"status": "UP", "model_class": name})

    @app.post(f"{folder}/setup", include_in_schema=False)
    async def setup(request: Request) -> Response:
        document = await _document(request)
        labelling_interface(_text(document, "schema"))  # what cannot work is said when the project is set up
        model = await api.describe(request.path_params.get("model"))
        return _json({"model_version": model.fingerprint})

    @app.post(f"{folder}/webhook", include_in_schema=False)
    async def webhook(request: Request) -> Response:
        await _document(request)
        return _json({"result": None, "status": "ok"}, 201)  # nothing is learnt from annotations


def _add_predict(app: FastAPI, api: DetectionApi, folder: str, pictures: TaskPictures, min_score: float) -> None:
    @app.post(f"{folder}/predict", include_in_schema=False)
    async def predict(request: Request) -> Response:
        name, _ = api.client(request.path_params.get("model"))
        document = await _document(request)
        interface = labelling_interface(_text(document, "label_config"))
        places = _places(document, interface)
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(place: str) -> dict[str, Any] | Problem:
            async with room:
                return await _predicted(api, name, pictures, place, interface, min_score)

        found = await all_of(map(one, places))
        failed = [result for result in found if isinstance(result, Problem)]
        if failed and len(failed) == len(found):
            raise failed[0]
        if failed:
            count, reason = len(failed), failed[0].line
            logger.warning("Label Studio: %d of %d pictures were not looked at; %s", count, len(found), reason)
        fingerprint = (await api.describe(name)).fingerprint
        nothing = {"result": [], "score": 0.0, "model_version": fingerprint}
        results = [nothing if isinstance(result, Problem) else result for result in found]
        return _json({"results": results, "model_version": fingerprint})


async def _predicted(
    api: DetectionApi, name: str, pictures: TaskPictures, place: str, interface: LabellingInterface, min_score: float
) -> dict[str, Any] | Problem:
    """Of one task; a problem of its picture alone is given back."""
    content = await asyncio.to_thread(pictures.read, place)
    try:
        detected = await api.detect(name, require_image(Upload(content), api.settings.uploads.max_pixels))
    except Problem as problem:
        if problem.status >= 500:
            raise
        return problem
    if detected.record.status != "ok":
        status: Any = detected.record.status
        return of_image(ImageError(status, detected.record.error or ""))
    return await asyncio.to_thread(prediction, detected.record, detected.model, interface, min_score)


async def _document(request: Request) -> Mapping[str, Any]:
    try:
        document = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON; expected what Label Studio sends") from None
    if not isinstance(document, dict):
        raise Problem(422, "the body is no JSON object; expected what Label Studio sends")
    return document


def _text(document: Mapping[str, Any], key: str) -> str:
    text = document.get(key)
    if not isinstance(text, str):
        raise Problem(422, f"{key}: expected the project's labelling interface, XML")
    return text


def _places(document: Mapping[str, Any], interface: LabellingInterface) -> list[str]:
    """Where the pictures of the tasks are."""
    tasks = document.get("tasks")
    if not isinstance(tasks, list):
        raise Problem(422, "tasks: expected a list of tasks")
    if len(tasks) > _MOST_TASKS:
        raise Problem(413, f"{len(tasks)} tasks in one request, expected at most {_MOST_TASKS}")
    places = []
    for index, task in enumerate(tasks):
        data = task.get("data") if isinstance(task, dict) else None
        place = data.get(interface.image_key) if isinstance(data, dict) else None
        if not isinstance(place, str):
            raise Problem(422, f"tasks.{index}.data.{interface.image_key[:60]}: expected where the picture is, a text")
        places.append(place)
    return places


def _json(content: object, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")
