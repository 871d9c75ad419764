"""Messages of the Open Inference Protocol's gRPC service, as protobuf writes them.

The classes are made here and not by a generator: they are few, fit every version of protobuf, and stand in a pool of
their own, so that a client's generated classes of the same names can live in the same process. A map travels as a
repeated entry of key and value, and is declared as that.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"

# Name of a message -> its fields: name, number, type (of protobuf, or a message's name), `*` = repeated.
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": (("live", 1, "bool"),),
    "ServerReadyRequest": (),
    "ServerReadyResponse": (("ready", 1, "bool"),),
    "ModelReadyRequest": (("name", 1, "string"), ("version", 2, "string")),
    "ModelReadyResponse": (("ready", 1, "bool"),),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (("name", 1, "string"), ("version", 2, "string"), ("extensions", 3, "string*")),
    "ModelMetadataRequest": (("name", 1, "string"), ("version", 2, "string")),
    "TensorMetadata": (("name", 1, "string"), ("datatype", 2, "string"), ("shape", 3, "int64*")),
    "ModelMetadataResponse": (
        ("name", 1, "string"),
        ("versions", 2, "string*"),
        ("platform", 3, "string"),
        ("inputs", 4, "TensorMetadata*"),
        ("outputs", 5, "TensorMetadata*"),
    ),
    "InferParameter": (
        ("bool_param", 1, "bool"),
        ("int64_param", 2, "int64"),
        ("string_param", 3, "string"),
        ("double_param", 4, "double"),
        ("uint64_param", 5, "uint64"),
    ),
    "ParameterEntry": (("key", 1, "string"), ("value", 2, "InferParameter")),
    "InferTensorContents": (("bytes_contents", 8, "bytes*"),),
    "InferInputTensor": (
        ("name", 1, "string"),
        ("datatype", 2, "string"),
        ("shape", 3, "int64*"),
        ("parameters", 4, "ParameterEntry*"),
        ("contents", 5, "InferTensorContents"),
    ),
    "InferRequestedOutputTensor": (("name", 1, "string"), ("parameters", 2, "ParameterEntry*")),
    "ModelInferRequest": (
        ("model_name", 1, "string"),
        ("model_version", 2, "string"),
        ("id", 3, "string"),
        ("parameters", 4, "ParameterEntry*"),
        ("inputs", 5, "InferInputTensor*"),
        ("outputs", 6, "InferRequestedOutputTensor*"),
        ("raw_input_contents", 7, "bytes*"),
    ),
    "InferOutputTensor": (("name", 1, "string"), ("datatype", 2, "string"), ("shape", 3, "int64*")),
    "ModelInferResponse": (
        ("model_name", 1, "string"),
        ("model_version", 2, "string"),
        ("id", 3, "string"),
        ("parameters", 4, "ParameterEntry*"),
        ("outputs", 5, "InferOutputTensor*"),
        ("raw_output_contents", 6, "bytes*"),
    ),
}

# The fields of which a message has one; they tell a parameter's type.
_ONE_OF = {"InferParameter": "parameter_choice"}


def message_classes() -> dict[str, Any]:
    """Classes by name, each time new ones in a new pool."""
    file = descriptor_pb2.FileDescriptorProto(name="maskrcnn_inference.proto", package="inference", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if name in _ONE_OF:
            message.oneof_decl.add(name=_ONE_OF[name])
        for field_name, number, text in fields:
            _add_field(message, field_name, number, text, in_choice=name in _ONE_OF)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _MESSAGES
    }


def _add_field(message: Any, name: str, number: int, text: str, *, in_choice: bool) -> None:
    proto = descriptor_pb2.FieldDescriptorProto
    kind = text.removesuffix("*")
    field = message.field.add(name=name, number=number)
    field.label = proto.LABEL_REPEATED if text.endswith("*") else proto.LABEL_OPTIONAL
    if kind in _MESSAGES:
        field.type, field.type_name = proto.TYPE_MESSAGE, f".inference.{kind}"
    else:
        field.type = proto.Type.Value(f"TYPE_{kind.upper()}")
    if in_choice:
        field.oneof_index = 0
