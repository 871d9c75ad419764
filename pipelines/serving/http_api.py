"""The HTTP interface: routes, what they take and give, and their description for OpenAPI.

What the detectors are, and where they run, is behind `DetectorClient`; `Gate` guards all of it.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from maskrcnn_core.errors import ImageError
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving import schemas
from pipelines.serving.counts import Counts
from pipelines.serving.detector_feed import Detected, DetectorLost
from pipelines.serving.detector_service import ServedModel
from pipelines.serving.problems import MEDIA_TYPE, Problem, of_image, service_failed, too_busy
from pipelines.serving.renderings import Wanted, coco_results, drawn, label_row, to_json
from pipelines.serving.uploads import Upload, UploadLimits, object_reader, read_uploads, require_image

_Answer = TypeVar("_Answer")

_JSON = "application/json"
_MOST_CATEGORIES = 1000
_LONGEST_CATEGORIES = 4000
_READY_SECONDS = 5.0
_LARGEST_ID = (1 << 63) - 1


class DetectorClient(Protocol):
    """A detector, wherever it runs."""

    async def detect(self, content: bytes) -> Detected:
        """What it finds in an image file.

        Raises:
            DetectorLost: it cannot answer now.
        """
        ...

    async def describe(self) -> ServedModel:
        """What it is now.

        Raises:
            DetectorLost: it cannot answer now.
        """
        ...


@dataclass(frozen=True)
class ApiSettings:
    """What the routes keep to.

    Attributes:
        uploads: limits of images.
        timeout: of a request, seconds; for clients to know.
        apply_exif: as the detectors do, for drawing.
    """

    uploads: UploadLimits
    timeout: float
    apply_exif: bool


class DetectionApi:
    """Answers to the questions of all protocols.

    Args:
        models: detectors by name, the default first.
        settings: limits.
        counts: of images.
    """

    def __init__(self, models: Mapping[str, DetectorClient], settings: ApiSettings, counts: Counts) -> None:
        self._models, self.settings, self.counts = dict(models), settings, counts
        self.fetch = object_reader(settings.uploads)

    @property
    def names(self) -> Sequence[str]:
        """Of the models, the default first."""
        return list(self._models)

    def client(self, name: str | None) -> tuple[str, DetectorClient]:
        """A model by name; the first one without.

        Raises:
            Problem: 404.
        """
        name = name or self.names[0]
        if name not in self._models:
            raise Problem(404, f"no model {name[:60]!r}; there are {', '.join(self.names)}")
        return name, self._models[name]

    async def describe(self, name: str | None) -> ServedModel:
        """What a model is now.

        Raises:
            Problem: 404, or 503.
        """
        return await _answered(self.client(name)[1].describe())

    async def detect(self, name: str | None, content: bytes) -> Detected:
        """What a model finds in an image file.

        Raises:
            Problem: 404, or 503.
        """
        name, client = self.client(name)
        detected = await _answered(client.detect(content))
        self.counts.image(name, detected.record.status, len(detected.record.detections))
        return detected

    async def detect_alone(self, name: str | None, upload: Upload) -> Detected:
        """The same of the only image of a request, which has to be a good one.

        Raises:
            Problem: 404, 413, 415, 422, 500 or 503.
        """
        detected = await self.detect(name, require_image(upload, self.settings.uploads.max_pixels))
        if detected.record.status != "ok":
            status: Any = detected.record.status
            raise of_image(ImageError(status, detected.record.error or ""))
        return detected

    async def wanted(
        self, name: str | None, score_threshold: float, max_detections: int | None, categories: str | None
    ) -> Wanted:
        """Which detections are asked for.

        Args:
            name: of the model.
            score_threshold, max_detections: as `Wanted`.
            categories: names or ids with commas in between.

        Raises:
            Problem: 422, a category is not the model's; 404, 503.
        """
        ids = None if categories is None else _category_ids(categories, (await self.describe(name)).categories)
        return Wanted(score_threshold, max_detections, ids)

    async def model_document(self, name: str) -> dict[str, Any]:
        """What clients are told of a model."""
        model, uploads = await self.describe(name), self.settings.uploads
        return {
            "name": name,
            "preset": model.preset,
            "fingerprint": model.fingerprint,
            "update": model.update,
            "categories": [{"id": number, "name": category} for number, category in model.categories],
            "masks": model.has_masks,
            "keypoints": None if model.keypoints is None else list(model.keypoints),
            "limits": {
                "max_bytes": uploads.max_bytes,
                "max_pixels": uploads.max_pixels,
                "max_images": uploads.max_images,
                "timeout_s": self.settings.timeout,
            },
        }

    async def is_ready(self) -> bool:
        """Whether every model answers."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await asyncio.gather(*(client.describe() for client in self._models.values()))
        except (DetectorLost, TimeoutError):
            return False
        return True


async def all_of(questions: Iterable[Coroutine[Any, Any, _Answer]]) -> list[_Answer]:
    """The answers to all, asked at the same time; the first error ends the others."""
    tasks = [asyncio.create_task(question) for question in questions]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _answered(question: Awaitable[_Answer]) -> _Answer:
    try:
        return await question
    except DetectorLost:
        raise too_busy("the detector cannot answer now", 1) from None


def _category_ids(text: str, categories: Sequence[tuple[int, str]]) -> frozenset[int]:
    if len(text) > _LONGEST_CATEGORIES or text.count(",") >= _MOST_CATEGORIES:
        raise Problem(422, f"categories: more than {_MOST_CATEGORIES} of them, or {_LONGEST_CATEGORIES} characters")
    by_name = {name: number for number, name in categories}
    by_name |= {str(number): number for number, _ in categories}
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in by_name]:
        raise Problem(422, f"categories: the model knows no {unknown[0][:60]!r}; /v1/models lists what it knows")
    return frozenset(by_name[name] for name in asked)


def add_detection_api(app: FastAPI, api: DetectionApi) -> None:
    """The routes below `/v1`, health and counts, and what all routes say where they do not answer."""
    _add_detection(app, api)
    _add_batch(app, api)
    _add_models(app, api)
    _add_health(app, api)
    _add_errors(app)


_ARGUMENTS = ("score_threshold", "max_detections", "categories", "format", "model")


def _require_known(request: Request, known: Sequence[str]) -> None:
    """An argument that is misspelt, or stands twice, would leave a client with what it has not asked for.

    Raises:
        Problem: 422.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    if unknown := [name for name in names if name not in known]:
        raise Problem(422, f"{unknown[0][:60]!r} is no argument; expected {', '.join(known)}")
    if len(set(names)) < len(names):
        raise Problem(422, f"an argument stands twice; expected each of {', '.join(known)} once")


Format = Literal["json", "coco", "png"]
Score = Annotated[float, Query(ge=0, le=1, description="Leave out weaker detections.")]
Most = Annotated[int | None, Query(ge=1, le=100_000, description="The best so many of an image.")]
Categories = Annotated[str | None, Query(description="Only these: names or ids, with commas in between.")]
ModelName = Annotated[str | None, Query(max_length=64, description="Of `/v1/models`; none = the first.")]
ImageId = Annotated[int, Query(ge=0, le=_LARGEST_ID, description="What the record calls the image.")]


def _add_detection(app: FastAPI, api: DetectionApi) -> None:
    @app.post("/v1/detect", summary="Detect objects in an image", **schemas.DETECT)
    async def detect(
        request: Request,
        score_threshold: Score = 0.0,
        max_detections: Most = None,
        categories: Categories = None,
        format: Format = "json",
        model: ModelName = None,
        image_id: ImageId = 0,
    ) -> Response:
        _require_known(request, (*_ARGUMENTS, "image_id"))
        name, _ = api.client(model)
        wanted = await api.wanted(name, score_threshold, max_detections, categories)
        uploads = await read_uploads(request, api.settings.uploads, api.fetch)
        if len(uploads) != 1:
            raise Problem(422, f"{len(uploads)} images, expected one; /v1/detect:batch takes several")
        (upload,) = uploads
        detected = await api.detect_alone(name, upload)
        record = wanted.of(detected.record)
        if format == "png":
            return Response(await _drawn(api, upload, record), media_type="image/png")
        if format == "coco":
            return Response(to_json(coco_results(record, image_id=image_id)), media_type=_JSON)
        row = label_row(record, detected.model, image_id=image_id, uri=upload.uri)
        return Response(to_json({**row, "timing": _timing(detected)}), media_type=_JSON)


def _add_batch(app: FastAPI, api: DetectionApi) -> None:
    @app.post("/v1/detect:batch", summary="Detect objects in several images", **schemas.DETECT_BATCH)
    async def detect_batch(
        request: Request,
        score_threshold: Score = 0.0,
        max_detections: Most = None,
        categories: Categories = None,
        format: Literal["json", "coco"] = "json",
        model: ModelName = None,
    ) -> Response:
        _require_known(request, _ARGUMENTS)
        name, _ = api.client(model)
        wanted = await api.wanted(name, score_threshold, max_detections, categories)
        uploads = await read_uploads(request, api.settings.uploads, api.fetch)
        found = await all_of(_detected(api, name, upload) for upload in uploads)
        images: list[Any] = []
        for index, (upload, detected) in enumerate(zip(uploads, found, strict=True)):
            record = wanted.of(detected.record)
            if format == "coco":
                images += coco_results(record, image_id=index)
                continue
            row = label_row(record, detected.model, image_id=index, uri=upload.uri)
            images.append({**row, "timing": _timing(detected)})
        return Response(to_json(images if format == "coco" else {"images": images}), media_type=_JSON)


async def _drawn(api: DetectionApi, upload: Upload, record: ImageRecord) -> bytes:
    limit, apply_exif = api.settings.uploads.max_pixels, api.settings.apply_exif
    content = require_image(upload, limit)
    return await asyncio.to_thread(drawn, content, record, max_pixels=limit, apply_exif=apply_exif)


async def _detected(api: DetectionApi, name: str, upload: Upload) -> Detected:
    """As labelling has it: an image that cannot be looked at has a record that says so."""
    if isinstance(upload.content, bytes):
        return await api.detect(name, upload.content)
    error = upload.content
    fingerprint = (await api.describe(name)).fingerprint
    return Detected(ImageRecord(error.status, str(error), None, None), fingerprint, 0.0, 0.0, 0.0, 0)


def _timing(detected: Detected) -> dict[str, float]:
    spent = {name: round(getattr(detected, name), 3) for name in ("decode_ms", "queue_ms", "model_ms")}
    return {**spent, "batch": detected.batch}


def model_in_path(api: DetectionApi) -> Any:
    """The argument of a path that names a model, with the names that there are."""
    return Path(json_schema_extra={"enum": list(api.names)})


def _add_models(app: FastAPI, api: DetectionApi) -> None:
    @app.get("/v1/models", summary="What can be asked", **schemas.MODELS)
    async def models() -> Response:
        documents = await all_of(map(api.model_document, api.names))
        return Response(to_json({"models": documents}), media_type=_JSON)

    named = model_in_path(api)

    @app.get("/v1/models/{name}", summary="One model", **schemas.MODEL)
    async def one_model(name: str = named) -> Response:
        api.client(name)
        return Response(to_json(await api.model_document(name)), media_type=_JSON)


def _add_health(app: FastAPI, api: DetectionApi) -> None:
    @app.get("/healthz", summary="The service lives", **schemas.HEALTH)
    async def healthz() -> Response:
        return Response(to_json({"status": "alive"}), media_type=_JSON)

    @app.get("/readyz", summary="Every model answers", **schemas.READY)
    async def readyz() -> Response:
        if not await api.is_ready():
            raise too_busy("a model does not answer yet", 2)
        return Response(to_json({"status": "ready"}), media_type=_JSON)

    @app.get("/metrics", summary="Counts, for Prometheus", **schemas.METRICS)
    async def metrics() -> Response:
        return Response(api.counts.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_errors(app: FastAPI) -> None:
    def answered(request: Request, problem: Problem) -> Response:
        document = problem.document(request.scope["state"]["request_id"], request.url.path)
        return Response(document, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)

    async def as_said(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return answered(request, error)

    async def of_routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answered(request, Problem(error.status_code, str(error.detail), error.headers))

    async def of_arguments(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return answered(request, Problem(422, f"{where}: {first['msg']}"))

    async def of_service(request: Request, error: Exception) -> Response:
        return answered(request, service_failed())  # it is raised again, for the gate to log

    app.add_exception_handler(Problem, as_said)
    app.add_exception_handler(Exception, of_service)
    app.add_exception_handler(HTTPException, of_routing)
    app.add_exception_handler(RequestValidationError, of_arguments)
