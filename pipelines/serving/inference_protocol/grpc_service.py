"""The Open Inference Protocol over gRPC, through Ray Serve's proxy.

The proxy passes the bytes of a message on as they are; they are read and written in the ingress.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from pipelines.serving.gate import Gate
from pipelines.serving.http_api import DetectionApi
from pipelines.serving.inference_protocol.messages import SERVICE, message_classes
from pipelines.serving.inference_protocol.questions import (
    EXTENSIONS,
    INPUT,
    SERVER_NAME,
    SERVER_VERSION,
    VERSION,
    Question,
    infer,
    is_model_ready,
    model_metadata,
    require_version,
)
from pipelines.serving.inference_protocol.tensors import num_elements, pieces_of
from pipelines.serving.problems import Problem, too_busy

METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
_OPEN_METHODS = ("ServerLive", "ServerReady")

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def add_inference_service(servicer: Any, server: Any) -> None:
    """Registers the service; what Ray Serve's `grpc_servicer_functions` name. Its bytes are not looked at there."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class RawMessage:
    """A message that is written already."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:
        """What Ray Serve asks a message for."""
        return self._content


class InferenceService:
    """Answers the methods of the service.

    Args:
        api: what is asked.
        gate: keys, rates and limits, the same as for HTTP.
        timeout: seconds.
        max_bytes: of a message.
    """

    def __init__(self, api: DetectionApi, gate: Gate, timeout: float, max_bytes: int) -> None:
        self._api, self._gate, self._timeout, self._max_bytes = api, gate, timeout, max_bytes
        self._classes = message_classes()
        self._answers: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }

    async def answer(self, method: str, content: bytes, context: Any) -> RawMessage:
        """The answer to a method, or its status in the context and `Problem`."""
        try:
            async with asyncio.timeout(self._timeout):
                if method in _OPEN_METHODS:
                    return await self._answered(method, content)
                self._require_allowed(context)
                with self._gate.slot():
                    return await self._answered(method, content)
        except TimeoutError:
            problem = too_busy(f"not answered within {self._timeout:g} s", 1, status=504)
        except Problem as error:
            problem = error
        context.set_code(_CODES.get(problem.status, grpc.StatusCode.INVALID_ARGUMENT))
        context.set_details(problem.line)
        raise problem

    def _require_allowed(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        name = self._gate.require_key(str(metadata.get("authorization", "")))
        self._gate.require_rate(f"key {name}" if name else str(context.peer()).rpartition(":")[0])

    async def _answered(self, method: str, content: bytes) -> RawMessage:
        if len(content) > self._max_bytes:
            raise Problem(413, f"the message has {len(content):,} bytes, expected at most {self._max_bytes:,}")
        try:
            request = self._classes[f"{method}Request"].FromString(content)
        except Exception:  # protobuf's DecodeError, of whichever implementation
            raise Problem(400, f"the message is no {method}Request") from None
        return RawMessage((await self._answers[method](request)).SerializeToString())

    async def _server_live(self, request: Any) -> Any:
        return self._classes["ServerLiveResponse"](live=True)

    async def _server_ready(self, request: Any) -> Any:
        return self._classes["ServerReadyResponse"](ready=await self._api.is_ready())

    async def _model_ready(self, request: Any) -> Any:
        require_version(request.version)
        self._api.client(_named(request.name))
        return self._classes["ModelReadyResponse"](ready=await is_model_ready(self._api, request.name))

    async def _server_metadata(self, request: Any) -> Any:
        return self._classes["ServerMetadataResponse"](name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any) -> Any:
        require_version(request.version)
        self._api.client(_named(request.name))
        return self._classes["ModelMetadataResponse"](**await model_metadata(self._api, request.name))

    async def _model_infer(self, request: Any) -> Any:
        require_version(request.model_version)
        self._api.client(_named(request.model_name))
        answer = await infer(self._api, self._question(request))
        outputs = [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape} for tensor in answer.outputs
        ]
        return self._classes["ModelInferResponse"](
            model_name=request.model_name,
            model_version=VERSION,
            id=request.id,
            parameters=[{"key": "fingerprint", "value": {"string_param": answer.fingerprint}}],
            outputs=outputs,
            raw_output_contents=[tensor.raw() for tensor in answer.outputs],
        )

    def _question(self, request: Any) -> Question:
        if len(request.inputs) != 1 or (request.inputs[0].name, request.inputs[0].datatype) != (INPUT, "BYTES"):
            raise Problem(400, f"inputs: expected one, {INPUT!r} of datatype BYTES, image files")
        (tensor,) = request.inputs
        if len(request.raw_input_contents) > 1:
            raise Problem(400, "raw_input_contents: expected those of one input")
        if request.raw_input_contents:
            images = pieces_of(request.raw_input_contents[0], self._api.settings.uploads.max_images)
        else:
            images = list(tensor.contents.bytes_contents)
        if num_elements(tensor.shape) != len(images):
            raise Problem(400, f"inputs: the shape does not fit {len(images)} images")
        parameters = {
            entry.key: getattr(entry.value, entry.value.WhichOneof("parameter_choice") or "bool_param")
            for entry in request.parameters
        }
        return Question(request.model_name, images, request.id, parameters, [one.name for one in request.outputs])


def _named(name: str) -> str:
    if not name:
        raise Problem(400, "no model is named")
    return name
