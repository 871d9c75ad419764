"""CVAT's auto-annotation function: the SDK's own checks of its labels and shapes, over a service that runs."""

import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_core.config.person import COCO_KEYPOINTS
from maskrcnn_core.data.generated.pictures import CATEGORIES, generate_picture
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.config import ServeConfig
from tests.pipelines.serving.cvat_site import TASK, running_cvat
from tests.pipelines.serving.function_detectors import FunctionDetector, annotated_record
from tests.pipelines.serving.local_service import LocalServer, local_server

pytest.importorskip("cvat_sdk", reason="cvat-sdk is missing")

from cvat_sdk import models
from cvat_sdk.auto_annotation import annotate_task
from cvat_sdk.auto_annotation.driver import _AnnotationMapper
from cvat_sdk.core.client import Client, Config
from cvat_sdk.masks import decode_mask

from pipelines.serving.cvat_function import create
from pipelines.serving.detector_service import ServedModel


@dataclass
class Context:
    """`DetectionFunctionContext`."""

    frame_name: str = "frame.png"
    conf_threshold: float | None = None
    conv_mask_to_poly: bool = False


@pytest.fixture(scope="module")
def known() -> tuple[Image.Image, ImageRecord]:
    drawn = generate_picture(2, seed=5, image_size=(420, 640))
    return Image.fromarray(drawn.pixels), annotated_record(drawn.annotations, CATEGORIES, *drawn.pixels.shape[:2])


@pytest.fixture(scope="module")
def server(known: tuple[Image.Image, ImageRecord]) -> Iterator[LocalServer]:
    picture, record = known

    def detect(content: bytes) -> ImageRecord:
        """Knows the picture by its pixels: CVAT gives no files."""
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(picture))
        return record

    categories = tuple((one.id, one.name) for one in CATEGORIES)
    model = ServedModel("small", "0" * 32, categories, COCO_KEYPOINTS, True)
    models = {
        "masks": FunctionDetector(detect, model),
        "boxes": FunctionDetector(detect, replace(model, has_masks=False, keypoints=None)),
    }
    with local_server(models, ServeConfig()) as server:
        yield server


def taken(function: Any, shapes: list[Any], *, polygons: bool = False) -> list[Any]:
    """Shapes as CVAT takes them for frame 7 of a task with the function's labels, after all checks of the SDK."""
    labels = []
    for label in function.spec.labels:
        sublabels = [
            models.Sublabel(id=1000 * label.id + one.id, name=one.name, type=one.type, attributes=[])
            for one in getattr(label, "sublabels", [])
        ]
        kind = "any" if polygons else label.type
        labels.append(models.Label(id=100 + label.id, name=label.name, type=kind, sublabels=sublabels, attributes=[]))
    mapper = _AnnotationMapper(
        logging.getLogger("cvat"),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        conv_mask_to_poly=polygons,
    )
    tags, remapped = mapper.validate_and_remap(shapes, 7)
    assert tags == []
    return remapped


def test_masks(server: LocalServer, known: tuple[Image.Image, ImageRecord]) -> None:
    picture, record = known
    function = create(server.address)
    shapes = taken(function, function.detect(Context(), picture))
    strong = [one for one in record.detections if one.score >= 0.5]
    assert len(shapes) == len(strong) > 2
    for shape, one in zip(shapes, strong, strict=True):
        assert (shape.type.value, shape.label_id, shape.frame) == ("mask", 100 + one.category_id, 7)
        assert shape.score == pytest.approx(one.score)
        decoded = decode_mask(shape.points, image_width=picture.width, image_height=picture.height)
        expected = coco_mask.decode({"size": [picture.height, picture.width], "counts": one.rle_counts})
        assert np.array_equal(decoded, expected)


def test_cvat_asks_for_a_confidence_of_its_own(server: LocalServer, known: tuple[Image.Image, ImageRecord]) -> None:
    picture, record = known
    function = create(server.address, min_score=0.9)
    assert len(function.detect(Context(), picture)) == sum(one.score >= 0.9 for one in record.detections)
    assert len(function.detect(Context(conf_threshold=0.0), picture)) == len(record.detections)
    assert function.detect(Context(conf_threshold=1.0), picture) == []


@pytest.mark.parametrize("asked_by", ["parameter", "cvat"])
def test_polygons(server: LocalServer, known: tuple[Image.Image, ImageRecord], asked_by: str) -> None:
    picture, record = known
    function = create(server.address, shapes="polygons" if asked_by == "parameter" else "masks")
    shapes = taken(function, function.detect(Context(conv_mask_to_poly=asked_by == "cvat"), picture), polygons=True)
    for shape, one in zip(shapes, record.detections, strict=False):
        assert shape.type.value == "polygon"
        mask = coco_mask.decode({"size": [picture.height, picture.width], "counts": one.rle_counts})
        # COCO's own polygons are filled a little more generously.
        filled = rasterise([shape.points], picture.height, picture.width)
        assert np.logical_and(filled, mask).sum() / np.logical_or(filled, mask).sum() > 0.9


def test_boxes(server: LocalServer, known: tuple[Image.Image, ImageRecord]) -> None:
    picture, record = known
    for function in (create(server.address, shapes="boxes"), create(server.address, model="boxes", skeletons=True)):
        first, *_ = taken(function, function.detect(Context(), picture))
        x, y, width, height = record.detections[0].bbox
        assert first.type.value == "rectangle"
        assert first.points == pytest.approx([x, y, x + width, y + height])


def test_skeletons(server: LocalServer, known: tuple[Image.Image, ImageRecord]) -> None:
    picture, record = known
    function = create(server.address, skeletons=True)
    assert [label.name for label in function.spec.labels][-len(CATEGORIES) :] == [
        f"{category.name} keypoints" for category in CATEGORIES
    ]
    shapes = taken(function, function.detect(Context(), picture))
    skeletons = [shape for shape in shapes if shape.type.value == "skeleton"]
    people = [one for one in record.detections if one.keypoints and one.score >= 0.5]
    assert len(skeletons) == len(people) > 0
    for skeleton, one in zip(skeletons, people, strict=True):
        points = np.reshape(one.keypoints or (), (-1, 3))
        assert [element.outside for element in skeleton.elements] == (points[:, 2] < 0.05).tolist()
        assert np.allclose([element.points for element in skeleton.elements], points[:, :2] + 0.5)


def test_a_turned_frame_is_sent_as_it_is_seen(server: LocalServer, known: tuple[Image.Image, ImageRecord]) -> None:
    """EXIF data that a frame still has would turn it a second time."""
    picture = known[0].copy()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.info["exif"] = exif.tobytes()
    assert create(server.address).detect(Context(), picture)


def test_the_sdk_annotates_a_task(server: LocalServer, known: tuple[Image.Image, ImageRecord], tmp_path: Path) -> None:
    """Its own client and loop, against a server that has a task of two frames and one of the labels."""
    picture, record = known
    labels = [{"id": 9, "name": "star", "type": "mask", "color": "#fff", "attributes": [], "sublabels": []}]
    with running_cvat([picture, picture], labels) as site:
        client = Client(site.address, config=Config(cache_dir=tmp_path), check_server_version=False)
        annotate_task(client, TASK, create(server.address), allow_unmatched_labels=True, conf_threshold=0.3)
        client.api_client.close()
    (created,) = site.created
    stars = [one for one in record.detections if one.score >= 0.3 and one.category == "star"]
    shapes = created["shapes"]
    assert [(shape["frame"], shape["label_id"], shape["type"], shape["source"]) for shape in shapes] == [
        (frame, 9, "mask", "auto") for frame in (0, 1) for _ in stars
    ]
    for shape, one in zip(shapes, stars * 2, strict=True):
        decoded = decode_mask(shape["points"], image_width=picture.width, image_height=picture.height)
        assert decoded.sum() == coco_mask.area({"size": [picture.height, picture.width], "counts": one.rle_counts})


@pytest.mark.parametrize(
    ("parameters", "error", "expected"),
    [
        ({"shapes": "ellipses"}, ConfigError, "shapes: got 'ellipses'"),
        ({"min_score": 2.0}, ConfigError, "min_score: got 2.0"),
        ({"model": "other"}, StorageError, "status 404, no model 'other'"),
        ({"model": "../x"}, StorageError, "status 404"),
        ({"address": "http://127.0.0.1:9"}, StorageError, "expected the address of a running jobs.serve"),
    ],
)
def test_mistakes(server: LocalServer, parameters: dict[str, Any], error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=re.escape(expected)):
        create(**{"address": server.address, **parameters})


def test_a_busy_service_is_asked_again(known: tuple[Image.Image, ImageRecord]) -> None:
    picture, record = known
    model = ServedModel("small", "0" * 32, tuple((one.id, one.name) for one in CATEGORIES), None, True)
    detector = FunctionDetector(lambda content: record, model)
    with local_server({"a": detector}, ServeConfig(requests_per_minute=60)) as server:
        function = create(server.address)
        while server.ask("/v1/models").status == 200:
            pass
        assert function.detect(Context(), picture)


def test_a_refused_image_says_why(server: LocalServer) -> None:
    with pytest.raises(StorageError, match="status 500"):  # the detector of this test knows one picture only
        create(server.address).detect(Context(), Image.new("RGB", (8, 8)))


def test_a_frame_with_transparency(server: LocalServer, known: tuple[Image.Image, ImageRecord]) -> None:
    assert create(server.address).detect(Context(), known[0].convert("RGBA"))
