"""What the Open Inference Protocol can ask of a detector, and the tensors that answer.

Letters: N images of a request, D detections of all of them, P keypoints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.detector_service import ServedModel
from pipelines.serving.http_api import DetectionApi, all_of
from pipelines.serving.inference_protocol.tensors import NamedTensor
from pipelines.serving.problems import Problem
from pipelines.serving.renderings import Wanted
from pipelines.serving.uploads import Upload

SERVER_NAME, SERVER_VERSION = "maskrcnn-ray", "1"
VERSION = "1"
PLATFORM = "maskrcnn"
EXTENSIONS = ("binary_tensor_data", "model_repository")
INPUT = "image"

# Name, datatype and shape of what every model answers; masks and keypoints come where there are heads for them.
_OUTPUTS = (
    ("num_detections", "INT32", (-1,)),
    ("boxes", "FP32", (-1, 4)),
    ("scores", "FP32", (-1,)),
    ("category_ids", "INT32", (-1,)),
    ("categories", "BYTES", (-1,)),
    ("sizes", "INT32", (-1, 2)),
    ("status", "BYTES", (-1,)),
    ("error", "BYTES", (-1,)),
)


@dataclass(frozen=True)
class Question:
    """An inference.

    Attributes:
        model: its name.
        images: files.
        request_id: of the client.
        parameters: of the request: `score_threshold`, `max_detections`, `categories`.
        outputs: names of those that are wanted; empty = all.
    """

    model: str
    images: Sequence[bytes]
    request_id: str
    parameters: Mapping[str, Any]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """Its tensors, and the fingerprint of what made them."""

    question: Question
    outputs: Sequence[NamedTensor]
    fingerprint: str


def output_types(model: ServedModel) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, datatype and shape of a model's outputs; -1 = any number."""
    types = list(_OUTPUTS)
    if model.has_masks:
        types.append(("masks_rle", "BYTES", (-1,)))
    if model.keypoints is not None:
        types.append(("keypoints", "FP32", (-1, len(model.keypoints), 3)))
    return types


def require_version(version: str) -> None:
    """There is one of each model.

    Raises:
        Problem: 404.
    """
    if version not in ("", VERSION):
        raise Problem(404, f"no version {version[:20]!r} of the model, there is {VERSION}")


async def model_metadata(api: DetectionApi, name: str) -> dict[str, Any]:
    """A model's inputs and outputs."""
    model = await api.describe(name)
    outputs = [{"name": one, "datatype": kind, "shape": list(shape)} for one, kind, shape in output_types(model)]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": outputs,
    }


async def is_model_ready(api: DetectionApi, name: str) -> bool:
    """Whether a model answers.

    Raises:
        Problem: 404, there is none of this name.
    """
    api.client(name)
    try:
        await api.describe(name)
    except Problem:
        return False
    return True


async def infer(api: DetectionApi, question: Question) -> Answer:
    """Detections as tensors. One image that is no good is a problem; one of several has its `status`.

    Raises:
        Problem: see `DetectionApi`.
    """
    model = await api.describe(question.model)
    types = output_types(model)
    if unknown := [name for name in question.outputs if name not in {one for one, _, _ in types}]:
        raise Problem(400, f"no output {unknown[0][:60]!r}; there are {', '.join(name for name, _, _ in types)}")
    if not 1 <= len(question.images) <= api.settings.uploads.max_images:
        raise Problem(413, f"{len(question.images)} images, expected 1 to {api.settings.uploads.max_images}")
    wanted = await _wanted(api, question)
    if len(question.images) == 1:
        found = [await api.detect_alone(question.model, Upload(question.images[0]))]
    else:
        found = await all_of(api.detect(question.model, content) for content in question.images)
    tensors = {tensor.name: tensor for tensor in _tensors([wanted.of(one.record) for one in found], model)}
    return Answer(question, [tensors[name] for name in question.outputs or tensors], found[0].model)


async def _wanted(api: DetectionApi, question: Question) -> Wanted:
    threshold = question.parameters.get("score_threshold", 0.0)
    most = question.parameters.get("max_detections")
    categories = question.parameters.get("categories")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise Problem(422, "score_threshold: expected a number from 0 to 1")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise Problem(422, "max_detections: expected a whole number of 1 or more")
    if categories is not None and not isinstance(categories, str):
        raise Problem(422, "categories: expected names or ids with commas in between")
    return await api.wanted(question.model, float(threshold), most, categories)


def _tensors(records: Sequence[ImageRecord], model: ServedModel) -> list[NamedTensor]:
    objects: list[DetectionRecord] = [one for record in records for one in record.detections]
    numbers = {
        "num_detections": np.array([len(record.detections) for record in records], np.int32),
        "boxes": np.array([one.bbox for one in objects], np.float32).reshape(-1, 4),
        "scores": np.array([one.score for one in objects], np.float32),
        "category_ids": np.array([one.category_id for one in objects], np.int32),
        "sizes": np.array([(record.height or 0, record.width or 0) for record in records], np.int32),
    }
    texts = {
        "categories": [one.category for one in objects],
        "status": [record.status for record in records],
        "error": [record.error or "" for record in records],
    }
    if model.has_masks:
        texts["masks_rle"] = [one.rle_counts or "" for one in objects]
    if model.keypoints is not None:
        none = (0.0,) * (3 * len(model.keypoints))
        points = np.array([one.keypoints or none for one in objects], np.float32)
        numbers["keypoints"] = points.reshape(-1, len(model.keypoints), 3)
    return [
        *(NamedTensor.of_numbers(name, values) for name, values in numbers.items()),
        *(NamedTensor.of_texts(name, values) for name, values in texts.items()),
    ]
