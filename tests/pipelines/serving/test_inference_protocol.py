"""The Open Inference Protocol through Triton's own clients, unchanged, and requests that none of them would send."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from pipelines.serving.inference_protocol.grpc_service import METHODS, add_inference_service
from pipelines.serving.inference_protocol.messages import message_classes
from pipelines.serving.problems import Problem
from tests.pipelines.serving.local_service import LocalServer, picture

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
rpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")


@pytest.fixture(scope="module")
def http_client(server: LocalServer) -> Iterator[Any]:
    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


class _OnServer:
    """The service's methods as gRPC calls them without Ray Serve, whose proxy passes bytes on."""

    def __init__(self, server: LocalServer) -> None:
        self._service = server.guarded.service

    def __getattr__(self, method: str) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            try:
                return (await self._service.answer(method, request, context)).SerializeToString()
            except Problem:
                return b""  # its status is in the context

        return answer


@pytest.fixture(scope="module")
def grpc_client(server: LocalServer) -> Iterator[Any]:
    async def start() -> tuple[Any, int]:
        on_grpc = grpc.aio.server()
        add_inference_service(_OnServer(server), on_grpc)
        port = on_grpc.add_insecure_port("127.0.0.1:0")
        await on_grpc.start()
        return on_grpc, port

    on_grpc, port = server.run(start())
    with rpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client
    server.run(on_grpc.stop(None))


def image_input(module: Any, *contents: bytes) -> list[Any]:
    tensor = module.InferInput("image", [len(contents)], "BYTES")
    tensor.set_data_from_numpy(np.array(contents, dtype=np.object_))
    return [tensor]


def records(result: Any) -> list[list[dict[str, Any]]]:
    """A result's tensors as the detections of each image."""
    found, start = [], 0
    for count, (height, width) in zip(result.as_numpy("num_detections"), result.as_numpy("sizes"), strict=True):
        found.append(
            [
                {
                    "category_id": int(result.as_numpy("category_ids")[index]),
                    "category": result.as_numpy("categories")[index].decode(),
                    "score": float(result.as_numpy("scores")[index]),
                    "bbox": result.as_numpy("boxes")[index].tolist(),
                    "segmentation": {
                        "size": [int(height), int(width)],
                        "counts": result.as_numpy("masks_rle")[index].decode(),
                    },
                    "keypoints": None,
                }
                for index in range(start, start + count)
            ]
        )
        start += count
    return found


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tensors_hold_the_record(server: LocalServer, http_client: Any, grpc_client: Any, kind: str) -> None:
    client, module = (http_client, http) if kind == "http" else (grpc_client, rpc)
    contents = [picture(seed=1), picture(90, 60, seed=2)]
    expected = [server.ask("/v1/detect", content).json for content in contents]
    alone = client.infer("default", image_input(module, contents[0]), request_id="one")
    assert records(alone) == [expected[0]["detections"]]
    both = client.infer("default", image_input(module, *contents), model_version="1")
    assert records(both) == [one["detections"] for one in expected]
    response = both.get_response()
    parameters = (
        response["parameters"]
        if kind == "http"
        else {key: value.string_param for key, value in response.parameters.items()}
    )
    assert parameters == {"fingerprint": expected[0]["model"]}


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_client_finds_its_way(http_client: Any, grpc_client: Any, kind: str) -> None:
    client = http_client if kind == "http" else grpc_client
    given: dict[str, Any] = {} if kind == "http" else {"as_json": True}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("default")
    assert client.get_server_metadata(**given)["name"] == "maskrcnn-ray"
    metadata = client.get_model_metadata("default", **given)
    assert [(one["name"], one["datatype"]) for one in metadata["inputs"]] == [("image", "BYTES")]
    names = [one["name"] for one in metadata["outputs"]]
    assert names[:3] == ["num_detections", "boxes", "scores"]
    assert "masks_rle" in names


def test_the_repository_is_listed(http_client: Any) -> None:
    assert [(one["name"], one["state"]) for one in http_client.get_model_repository_index()] == [("default", "READY")]


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_parameters_leave_less(http_client: Any, grpc_client: Any, kind: str) -> None:
    client, module = (http_client, http) if kind == "http" else (grpc_client, rpc)
    outputs = [module.InferRequestedOutput("scores"), module.InferRequestedOutput("categories")]
    parameters = {"max_detections": 2, "categories": "three", "score_threshold": 0.0}
    result = client.infer("default", image_input(module, picture()), outputs=outputs, parameters=parameters)
    assert result.as_numpy("categories").tolist() == [b"three", b"three"]
    assert result.as_numpy("boxes") is None


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_mistakes_are_told(http_client: Any, grpc_client: Any, kind: str) -> None:
    client, module = (http_client, http) if kind == "http" else (grpc_client, rpc)
    for name, contents, expected in [
        ("other", [picture()], "no model 'other'"),
        ("default", [b"text that is no image"], "not an image: it is text"),
        ("default", [picture()] * 5, "images"),
        ("default", [b""], "the file is empty"),
    ]:
        with pytest.raises(module.InferenceServerException, match=expected):
            client.infer(name, image_input(module, *contents))
    with pytest.raises(module.InferenceServerException, match="no version '2'"):
        client.infer("default", image_input(module, picture()), model_version="2")
    with pytest.raises(module.InferenceServerException, match="no output 'nothing'"):
        client.infer("default", image_input(module, picture()), outputs=[module.InferRequestedOutput("nothing")])


def test_one_bad_image_of_several_has_its_status(http_client: Any) -> None:
    result = http_client.infer("default", image_input(http, picture(), b"text that is no image"))
    assert result.as_numpy("status").tolist() == [b"ok", b"unreadable"]
    assert result.as_numpy("num_detections").tolist()[1] == 0
    assert b"text" in result.as_numpy("error")[1]


def test_json_alone_will_do(server: LocalServer) -> None:
    content = picture()
    data = [base64.b64encode(content).decode()]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    reply = server.ask("/v2/models/default/infer", json.dumps({"inputs": [tensor], "id": "7"}).encode())
    outputs = {one["name"]: one for one in reply.json["outputs"]}
    assert reply.json["id"] == "7"
    assert outputs["boxes"]["shape"] == [len(outputs["scores"]["data"]), 4]
    assert outputs["scores"]["data"] == [one["score"] for one in server.ask("/v1/detect", content).json["detections"]]


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}
MISSHAPEN: dict[str, tuple[bytes, dict[str, str]]] = {
    "no JSON": (b"\xff\xfe", {}),
    "a list": (b"[]", {}),
    "deep": (b"[" * 100_000, {}),
    "no inputs": (b"{}", {}),
    "two inputs": (json.dumps({"inputs": [IMAGE, IMAGE]}).encode(), {}),
    "another datatype": (json.dumps({"inputs": [{**IMAGE, "datatype": "FP32", "data": [1]}]}).encode(), {}),
    "no data": (json.dumps({"inputs": [IMAGE]}).encode(), {}),
    "no base64": (json.dumps({"inputs": [{**IMAGE, "data": ["%"]}]}).encode(), {}),
    "another shape": (json.dumps({"inputs": [{**IMAGE, "shape": [2], "data": ["aaaa"]}]}).encode(), {}),
    "shape of text": (json.dumps({"inputs": [{**IMAGE, "shape": "1", "data": ["aaaa"]}]}).encode(), {}),
    "huge shape": (json.dumps({"inputs": [{**IMAGE, "shape": [10**30] * 99, "data": ["aaaa"]}]}).encode(), {}),
    "header beyond the body": (b"{}", {"Inference-Header-Content-Length": "3"}),
    "header no number": (b"{}", {"Inference-Header-Content-Length": "-1"}),
    "header of many digits": (b"{}", {"Inference-Header-Content-Length": "9" * 5000}),
    "a size that lies": (
        json.dumps({"inputs": [{**IMAGE, "parameters": {"binary_data_size": 10**12}}]}).encode() + b"1234",
        {},
    ),
    "id no text": (json.dumps({"id": 1, "inputs": [{**IMAGE, "data": ["aaaa"]}]}).encode(), {}),
    "parameters no object": (json.dumps({"parameters": [], "inputs": [{**IMAGE, "data": ["aaaa"]}]}).encode(), {}),
}


@pytest.mark.parametrize("case", MISSHAPEN)
def test_misshapen_requests_are_refused(server: LocalServer, case: str) -> None:
    body, headers = MISSHAPEN[case]
    reply = server.ask("/v2/models/default/infer", body, headers)
    assert reply.status in (400, 413, 422)
    assert reply.json["error"] == reply.json["detail"]


def test_misshapen_pieces_are_refused(server: LocalServer) -> None:
    for raw in (b"\x01", b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xff"):
        head = json.dumps({"inputs": [{**IMAGE, "parameters": {"binary_data_size": len(raw)}}]}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        assert server.ask("/v2/models/default/infer", head + raw, length).status == 400


def test_messages_are_those_of_triton() -> None:
    """Every message that we write is read by the classes that Triton's authors generated, and back."""
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2")
    ours = message_classes()
    request = theirs.ModelInferRequest(model_name="m", id="i", raw_input_contents=[b"\x01\x00\x00\x00a"])
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 2**40])
    request.outputs.add(name="scores")
    request.parameters["a"].int64_param = 2**40
    request.parameters["b"].bool_param = True
    request.parameters["c"].double_param = 0.5
    read = ours["ModelInferRequest"].FromString(request.SerializeToString())
    assert (read.model_name, read.id, list(read.inputs[0].shape)) == ("m", "i", [1, 2**40])
    assert {one.key: one.value.WhichOneof("parameter_choice") for one in read.parameters} == {
        "a": "int64_param",
        "b": "bool_param",
        "c": "double_param",
    }
    assert theirs.ModelInferRequest.FromString(read.SerializeToString()) == request
    for name in METHODS:
        assert getattr(theirs, f"{name}Response").FromString(ours[f"{name}Response"]().SerializeToString()) is not None


def test_bytes_that_are_no_message_are_refused(server: LocalServer) -> None:
    class Context:
        code: Any = None

        def invocation_metadata(self) -> list[tuple[str, str]]:
            return []

        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        def set_code(self, code: Any) -> None:
            self.code = code

        def set_details(self, details: str) -> None:
            assert "ModelInferRequest" in details

    context = Context()
    with pytest.raises(Problem):
        server.run(asyncio.wait_for(server.guarded.service.answer("ModelInfer", b"\xff" * 9, context), 10))
    assert context.code == grpc.StatusCode.INVALID_ARGUMENT
