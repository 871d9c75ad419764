"""What OpenAPI is told of bodies and answers, which the routes read and write themselves."""

from typing import Any

from starlette.responses import Response

from pipelines.serving.problems import MEDIA_TYPE

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
    },
}
_MILLISECONDS = {"type": "number", "minimum": 0}
_RECORD = {
    "type": "object",
    "required": ["image_id", "uri", "width", "height", "status", "error", "detections", "model", "timing"],
    "properties": {
        "image_id": {"type": "integer"},
        "uri": {"type": "string"},
        "width": {"type": ["integer", "null"]},
        "height": {"type": ["integer", "null"]},
        "status": {"enum": ["ok", "missing", "unreadable", "unsupported", "too_large", "failed"]},
        "error": {"type": ["string", "null"]},
        "model": {"type": "string"},
        "timing": {
            "type": "object",
            "properties": {
                **{name: _MILLISECONDS for name in ("decode_ms", "queue_ms", "model_ms")},
                "batch": {"type": "integer", "minimum": 0},
            },
        },
        "detections": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["category_id", "category", "score", "bbox", "segmentation", "keypoints"],
                "properties": {
                    "category_id": {"type": "integer"},
                    "category": {"type": "string"},
                    "score": {"type": "number", "minimum": 0, "maximum": 1},
                    "bbox": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
                    "segmentation": {
                        "type": ["object", "null"],
                        "properties": {
                            "size": {"type": "array", "items": {"type": "integer"}},
                            "counts": {"type": "string"},
                        },
                    },
                    "keypoints": {"type": ["array", "null"], "items": {"type": "number"}},
                },
            },
        },
    },
}
_COCO = {"type": "array", "items": {"type": "object", "required": ["image_id", "category_id", "score", "bbox"]}}
_MODEL = {
    "type": "object",
    "required": ["name", "preset", "fingerprint", "update", "categories", "masks", "keypoints", "limits"],
}
_STATUS = {"type": "object", "minProperties": 1}
_IMAGE = {"type": "string", "format": "binary"}
_REASONS = {
    400: "The body is empty or cannot be parsed.",
    401: "No key, or none that is known.",
    403: "The name lies outside of what may be read.",
    404: "No such model, object or path.",
    408: "The body came too slowly.",
    413: "Too many bytes, pixels or images.",
    414: "The address is too long.",
    415: "A format that is not read.",
    422: "An argument, or the image, is damaged or makes no sense.",
    431: "The headers are too long.",
    429: "Too many requests; see Retry-After.",
    500: "The service failed.",
    503: "Busy, or not ready; see Retry-After.",
    504: "Not answered in time.",
}


def _answers(content: dict[str, Any], reasons: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    problem = {MEDIA_TYPE: {"schema": _PROBLEM}}
    return {
        200: {"description": "As asked.", "content": content},
        **{status: {"description": _REASONS[status], "content": problem} for status in reasons},
    }


def _route(content: dict[str, Any], reasons: tuple[int, ...], body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a route of FastAPI."""
    described: dict[str, Any] = {"responses": _answers(content, reasons), "response_class": _Undescribed}
    if body is not None:
        described["openapi_extra"] = {"requestBody": {"required": True, "content": body}}
    return described


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _form(image: dict[str, Any]) -> dict[str, Any]:
    return {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": image}},
        }
    }


class _Undescribed(Response):
    """Of no media type of its own, so that OpenAPI has those that are written here alone."""

    media_type = None


_ALWAYS = (401, 408, 413, 414, 415, 422, 429, 431, 500, 503, 504)
_URI = {"type": "object", "required": ["uri"], "properties": {"uri": {"type": "string"}}}
_URIS = {
    "type": "object",
    "required": ["uris"],
    "properties": {"uris": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
}

DETECT = _route(
    {"application/json": {"schema": {"anyOf": [_RECORD, _COCO]}}, "image/png": {"schema": _IMAGE}},
    (400, 403, 404, *_ALWAYS),
    {"image/jpeg": {"schema": _IMAGE}, "application/octet-stream": {"schema": _IMAGE}, **_form(_IMAGE), **_json(_URI)},
)
DETECT_BATCH = _route(
    _json({"anyOf": [{"type": "object", "properties": {"images": {"type": "array", "items": _RECORD}}}, _COCO]}),
    (400, 403, 404, *_ALWAYS),
    {**_form({"type": "array", "items": _IMAGE}), **_json(_URIS)},
)
MODELS = _route(_json({"type": "object", "properties": {"models": {"type": "array", "items": _MODEL}}}), _ALWAYS)
MODEL = _route(_json(_MODEL), (404, *_ALWAYS))
HEALTH = _route(_json(_STATUS), _ALWAYS)
READY = _route(_json(_STATUS), _ALWAYS)
METRICS = _route({"text/plain": {"schema": {"type": "string"}}}, _ALWAYS)
MODEL_METADATA = _route(_json({"type": "object", "required": ["name"]}), (404, *_ALWAYS))
INDEX = _route(_json({"type": "array", "items": {"type": "object", "required": ["name", "state"]}}), _ALWAYS)
INFER = _route(
    {
        **_json({"type": "object", "required": ["model_name", "outputs"]}),
        "application/octet-stream": {"schema": _IMAGE},
    },
    (400, 404, *_ALWAYS),
    _json(
        {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "parameters": {"type": "object"},
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "shape", "datatype", "data"],
                        "properties": {
                            "name": {"const": "image"},
                            "datatype": {"const": "BYTES"},
                            "shape": {"type": "array", "items": {"type": "integer"}},
                            "data": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
                        },
                    },
                },
                "outputs": {
                    "type": "array",
                    "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
                },
            },
        }
    ),
)
