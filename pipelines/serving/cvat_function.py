"""CVAT's auto-annotation function: objects that a running service finds, as shapes of a task.

    cvat-cli task auto-annotate 137 --function-module pipelines.serving.cvat_function -p address=str:http://127.0.0.1:8000

Contract: cvat_sdk.auto_annotation (`DetectionFunction`); `create` is called with the parameters of the command line.
An agent (`cvat-cli function run-agent`) runs the same function while people annotate. CVAT matches labels by name.
"""

import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode

import cvat_sdk.auto_annotation as auto_annotation
import numpy as np
from cvat_sdk.masks import encode_mask
from PIL import Image

from maskrcnn_core.data.segmentation import ObjectMask, object_mask
from maskrcnn_core.drawing.keypoints import DOUBTFUL
from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.export.polygons import mask_polygon

_TOLERANCE = 0.5  # how far a polygon may be off the mask's outline, pixels
_SECONDS = 120.0
_MOST_WAITS, _LONGEST_WAIT = 6, 30.0  # for a service that is busy; seconds
_SHAPES = ("masks", "polygons", "boxes")


def create(
    address: str = "http://127.0.0.1:8000",
    model: str = "",
    key: str = "",
    shapes: str = "masks",
    min_score: float = 0.5,
    skeletons: bool = False,
) -> "ServedDetector":
    """The function for CVAT.

    Args:
        address: of the service.
        model: by name; empty = its first.
        key: of the service; empty = none.
        shapes: masks, polygons or boxes; a model without masks gives boxes.
        min_score: weaker objects are left out, unless CVAT asks for a confidence of its own.
        skeletons: also a label `CATEGORY keypoints` for each category, with a skeleton of the model's keypoints.

    Raises:
        ConfigError: a parameter makes no sense.
        StorageError: the service does not answer.
    """
    if shapes not in _SHAPES:
        raise ConfigError(f"shapes: got {shapes!r}, expected one of {', '.join(_SHAPES)}")
    if not 0 <= min_score <= 1:
        raise ConfigError(f"min_score: got {min_score}, expected a number from 0 to 1")
    return ServedDetector(_Service(address, key), model, shapes, min_score, skeletons=skeletons)


class ServedDetector:
    """`DetectionFunction` of CVAT's SDK.

    Args:
        service: that is asked.
        model: by name; empty = the first.
        shapes, min_score, skeletons: as of `create`.
    """

    def __init__(self, service: "_Service", model: str, shapes: str, min_score: float, *, skeletons: bool) -> None:
        self._service, self._min_score = service, min_score
        self._model = service.model(model)
        self._shapes = shapes if self._model["masks"] else "boxes"
        self._keypoints: Sequence[str] = (self._model["keypoints"] or []) if skeletons else []
        # Skeletons are labels of their own, behind the categories.
        self._skeletons = 1 + max((category["id"] for category in self._model["categories"]), default=0)

    @cached_property
    def spec(self) -> Any:
        """`DetectionFunctionSpec`: a label for each category."""
        kind = {"masks": "mask", "polygons": "polygon", "boxes": "rectangle"}[self._shapes]
        categories = self._model["categories"]
        labels = [auto_annotation.label_spec(one["name"], one["id"], type=kind) for one in categories]
        if self._keypoints:
            labels += [
                auto_annotation.skeleton_label_spec(
                    f"{one['name']} keypoints",
                    self._skeletons + one["id"],
                    [auto_annotation.keypoint_spec(name, index) for index, name in enumerate(self._keypoints)],
                )
                for one in categories
            ]
        return auto_annotation.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Shapes of one image, best first.

        Args:
            context: `DetectionFunctionContext`.
            image: the frame.

        Raises:
            StorageError: the service refuses the image, or does not answer.
        """
        threshold = self._min_score if context.conf_threshold is None else context.conf_threshold
        record = self._service.record(_png(image), self._model["name"], threshold)
        polygons = self._shapes == "polygons" or bool(context.conv_mask_to_poly)
        size = record["height"], record["width"]
        return [shape for one in record["detections"] for shape in self._shapes_of(one, size, polygons=polygons)]

    def _shapes_of(self, detection: Mapping[str, Any], size: tuple[int, int], *, polygons: bool) -> Iterator[Any]:
        number, score = detection["category_id"], detection["score"]
        if self._shapes == "boxes":
            x, y, width, height = detection["bbox"]
            yield auto_annotation.rectangle(number, [x, y, x + width, y + height], score=score)
        else:
            mask = object_mask(detection["segmentation"], *size)
            if not mask.pixels.any():
                return  # nothing to draw
            if polygons:
                points = mask_polygon(mask, _TOLERANCE).ravel().tolist()
                yield auto_annotation.polygon(number, points, score=score)
            else:
                yield auto_annotation.mask(number, _runs(mask), score=score)
        if self._keypoints and detection["keypoints"]:
            yield self._skeleton(number, detection["keypoints"], score)

    def _skeleton(self, number: int, flat: Sequence[float], score: float) -> Any:
        # CVAT's coordinates are continuous, and every keypoint has to be there.
        elements = [
            auto_annotation.keypoint(index, [x + 0.5, y + 0.5], outside=v < DOUBTFUL)
            for index, (x, y, v) in enumerate(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        ]
        return auto_annotation.skeleton(self._skeletons + number, elements, score=score)


def _runs(mask: ObjectMask) -> list[float]:
    """A mask's points as CVAT has them: runs along the rows of its rectangle, and the rectangle."""
    height, width = mask.pixels.shape
    *runs, _, _, _, _ = encode_mask(mask.pixels, [0, 0, width, height])
    return [*runs, mask.left, mask.top, mask.left + width - 1, mask.top + height - 1]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    # Pixels alone: CVAT has turned the picture already, whatever its EXIF data say.
    Image.fromarray(np.asarray(image.convert("RGB"))).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


class _Service:
    """The interface of a running service."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def model(self, name: str) -> Mapping[str, Any]:
        """What the service says of a model; of its first one without a name."""
        if name:
            found: Mapping[str, Any] = self._ask(f"/v1/models/{quote(name, safe='')}")
            return found
        first: Mapping[str, Any] = self._ask("/v1/models")["models"][0]
        return first

    def record(self, content: bytes, model: str, min_score: float) -> Mapping[str, Any]:
        """The label record of an image file."""
        query = urlencode({"model": model, "score_threshold": min_score})
        record: Mapping[str, Any] = self._ask(f"/v1/detect?{query}", content)
        return record

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        for left in reversed(range(_MOST_WAITS)):
            request = urllib.request.Request(f"{self._address}{path}", body, self._headers)
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in (429, 503) and left:
                        time.sleep(_wait(error))
                        continue
                    raise StorageError(f"{self._address}: status {error.code}, {_detail(error)}") from None
            except (OSError, ValueError) as error:
                raise StorageError(
                    f"{self._address}: no answer ({error}); expected the address of a running jobs.serve"
                ) from error
        raise AssertionError("the last attempt returns or raises")


def _wait(error: urllib.error.HTTPError) -> float:
    """Seconds until a busy service may be asked again."""
    said = error.headers.get("Retry-After", "")
    return min(float(said), _LONGEST_WAIT) if said.isdigit() else 1.0


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return "which it gives no reason for"
