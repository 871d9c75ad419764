"""The Open Inference Protocol over HTTP: `/v2`, with Triton's binary tensors behind the JSON."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from pipelines.serving import schemas
from pipelines.serving.http_api import DetectionApi, model_in_path
from pipelines.serving.inference_protocol.questions import (
    EXTENSIONS,
    INPUT,
    SERVER_NAME,
    SERVER_VERSION,
    VERSION,
    Answer,
    Question,
    infer,
    is_model_ready,
    model_metadata,
    require_version,
)
from pipelines.serving.inference_protocol.tensors import num_elements, pieces_of
from pipelines.serving.problems import Problem, too_busy
from pipelines.serving.renderings import to_json

_JSON = "application/json"
_HEADER_LENGTH = "inference-header-content-length"


def add_inference_protocol(app: FastAPI, api: DetectionApi) -> None:
    """The routes below `/v2`."""
    _add_server(app, api)
    _add_models(app, api)
    _add_inference(app, api)


def _add_server(app: FastAPI, api: DetectionApi) -> None:
    @app.get("/v2", summary="Open Inference Protocol: server", **schemas.MODEL_METADATA)
    async def server() -> Response:
        return _json({"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": list(EXTENSIONS)})

    @app.get("/v2/health/live", summary="Open Inference Protocol: lives", **schemas.HEALTH)
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready", summary="Open Inference Protocol: ready", **schemas.READY)
    async def ready() -> Response:
        if not await api.is_ready():
            raise too_busy("a model does not answer yet", 2)
        return _json({"ready": True})

    @app.post("/v2/repository/index", summary="Triton: models that are there", **schemas.INDEX)
    async def index() -> Response:
        ready = [await is_model_ready(api, name) for name in api.names]
        states = ["READY" if one else "UNAVAILABLE" for one in ready]
        return _json(
            [
                {"name": name, "version": VERSION, "state": state, "reason": ""}
                for name, state in zip(api.names, states, strict=True)
            ]
        )


def _add_models(app: FastAPI, api: DetectionApi) -> None:
    named = model_in_path(api)

    @app.get("/v2/models/{name}", summary="Open Inference Protocol: inputs and outputs", **schemas.MODEL_METADATA)
    @app.get("/v2/models/{name}/versions/{version}", include_in_schema=False)
    async def metadata(name: str = named, version: str = "") -> Response:
        api.client(name)
        require_version(version)
        return _json(await model_metadata(api, name))

    @app.get("/v2/models/{name}/ready", summary="Open Inference Protocol: model ready", **schemas.MODEL_METADATA)
    @app.get("/v2/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def ready(name: str = named, version: str = "") -> Response:
        api.client(name)
        require_version(version)
        if not await is_model_ready(api, name):
            raise too_busy("the model does not answer yet", 2)
        return _json({"name": name, "ready": True})


def _add_inference(app: FastAPI, api: DetectionApi) -> None:
    named = model_in_path(api)

    @app.post("/v2/models/{name}/infer", summary="Open Inference Protocol: detect", **schemas.INFER)
    @app.post("/v2/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def inference(request: Request, name: str = named, version: str = "") -> Response:
        api.client(name)
        require_version(version)
        document, rest = _split(await request.body(), request.headers.get(_HEADER_LENGTH))
        question = _question(name, document, rest, api.settings.uploads.max_images)
        return _written(await infer(api, question), document)


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON part, and what follows it."""
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and int(header_length[:20]) <= len(body)):
            raise Problem(400, f"{_HEADER_LENGTH}: expected a number up to the body's length, {len(body)}")
        length = int(header_length)
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise Problem(400, "the body does not begin with the JSON of an inference request") from None
    if not isinstance(document, dict):
        raise Problem(400, "the JSON of the request is no object")
    return document, body[length:]


def _question(name: str, document: Mapping[str, Any], rest: bytes, most_images: int) -> Question:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(400, f"inputs: expected one, {INPUT!r}")
    (tensor,) = inputs
    if tensor.get("name") != INPUT or tensor.get("datatype") != "BYTES":
        raise Problem(400, f"inputs: expected {INPUT!r} of datatype BYTES, image files")
    images = _images(tensor, rest, most_images)
    shape = tensor.get("shape")
    whole = isinstance(shape, list) and all(type(side) is int for side in shape)
    if not whole or num_elements(shape) != len(images):
        raise Problem(400, f"inputs: the shape does not fit {len(images)} images")
    outputs = document.get("outputs", [])
    if not isinstance(outputs, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in outputs
    ):
        raise Problem(400, "outputs: expected a list of objects with a name")
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise Problem(400, "id: expected text")
    return Question(name, images, request_id, _parameters(document), [one["name"] for one in outputs])


def _parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Problem(400, "parameters: expected an object")
    return parameters


def _images(tensor: Mapping[str, Any], rest: bytes, most: int) -> list[bytes]:
    """Behind the JSON, or base64 within it."""
    size = _parameters(tensor).get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != len(rest):
            raise Problem(400, f"binary_data_size: got {size!r}, {len(rest)} bytes follow the JSON")
        return pieces_of(rest, most)
    data = tensor.get("data")
    if not isinstance(data, list) or not all(isinstance(piece, str) for piece in data):
        raise Problem(
            400, "data: expected a list of image files in base64, or binary_data_size and bytes behind the JSON"
        )
    if len(data) > most:
        raise Problem(413, f"more than {most} images in one request")
    try:
        return [base64.b64decode(piece, validate=True) for piece in data]
    except (binascii.Error, ValueError):
        raise Problem(400, "data: not in base64") from None


def _written(answer: Answer, document: Mapping[str, Any]) -> Response:
    """JSON, and behind it the tensors that are wanted as bytes."""
    as_bytes = _wanted_as_bytes(document, [tensor.name for tensor in answer.outputs])
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for tensor in answer.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.name in as_bytes:
            raw.append(tensor.raw())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = tensor.listed()
        outputs.append(entry)
    content = {
        "model_name": answer.question.model,
        "model_version": VERSION,
        "id": answer.question.request_id,
        "parameters": {"fingerprint": answer.fingerprint},
        "outputs": outputs,
    }
    head = to_json(content)
    if not raw:
        return Response(head, media_type=_JSON)
    headers = {_HEADER_LENGTH: str(len(head))}
    return Response(b"".join([head, *raw]), media_type="application/octet-stream", headers=headers)


def _wanted_as_bytes(document: Mapping[str, Any], names: Sequence[str]) -> set[str]:
    if not document.get("outputs"):
        return set(names) if _parameters(document).get("binary_data_output") is True else set()
    default = _parameters(document).get("binary_data_output") is True
    return {one["name"] for one in document["outputs"] if _parameters(one).get("binary_data", default) is True}


def _json(content: object) -> Response:
    return Response(to_json(content), media_type=_JSON)
