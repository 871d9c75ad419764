"""What `/v1` answers: the record of labelling field by field, what a query leaves of it, its other forms."""

import io

import numpy as np
import pytest
from PIL import Image

from maskrcnn_core.inference.predictor import Predictor, load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.labels import record_schema, records_to_table
from tests.pipelines.serving.local_service import LocalServer, form, picture


@pytest.fixture(scope="module")
def predictor(checkpoint: str) -> Predictor:
    return load_predictor(checkpoint, PredictorSettings(max_pixels=100_000))


def rows(predictor: Predictor, *contents: bytes, uris: tuple[str, ...] = ("",)) -> list[dict]:
    """What labelling writes of them."""
    records = predictor.predict(contents)
    schema = record_schema(predictor.categories)
    ids = range(len(contents))
    return records_to_table(
        ids, uris * len(contents) if len(uris) == 1 else uris, records, predictor.fingerprint, schema
    ).to_pylist()


def without_timing(record: dict) -> dict:
    assert set(record["timing"]) == {"decode_ms", "queue_ms", "model_ms", "batch"}
    assert all(value >= 0 for value in record["timing"].values())
    return {name: value for name, value in record.items() if name != "timing"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_an_image_has_the_record_of_labelling(server: LocalServer, predictor: Predictor, kind: str) -> None:
    content = picture(kind=kind)
    reply = server.ask("/v1/detect", content)
    assert reply.status == 200
    (expected,) = rows(predictor, content)
    assert len(expected["detections"]) > 2
    assert without_timing(reply.json) == expected


def test_a_form_names_its_image(server: LocalServer, predictor: Predictor) -> None:
    content = picture()
    reply = server.ask("/v1/detect?image_id=9223372036854775807", *form(("a b.png", content)))
    (expected,) = rows(predictor, content, uris=("a b.png",))
    assert without_timing(reply.json) == {**expected, "image_id": 9223372036854775807}


def test_a_query_leaves_less(server: LocalServer) -> None:
    content = picture()
    everything = server.ask("/v1/detect", content).json["detections"]
    middle = sorted(one["score"] for one in everything)[len(everything) // 2]
    names = [one["category"] for one in everything]
    for query, expected in {
        f"score_threshold={middle!r}": [one for one in everything if one["score"] >= middle],
        "max_detections=2": everything[:2],
        "categories=three": [one for one in everything if one["category"] == "three"],
        "categories=7": [one for one in everything if one["category_id"] == 7],
        "categories=seven,3": everything,
        "categories=": [],
        "categories=three&max_detections=1": [one for one in everything if one["category"] == "three"][:1],
    }.items():
        assert server.ask(f"/v1/detect?{query}", content).json["detections"] == expected, query
    assert len(set(names)) == 2


def test_several_images_have_records_in_order(server: LocalServer, predictor: Predictor) -> None:
    contents = [picture(seed=1), b"no image", picture(90, 60, seed=2)]
    reply = server.ask("/v1/detect:batch", *form(*zip(("a", "b", "c"), contents, strict=True)))
    assert [without_timing(one) for one in reply.json["images"]] == rows(predictor, *contents, uris=("a", "b", "c"))
    assert [one["status"] for one in reply.json["images"]] == ["ok", "unreadable", "ok"]


def test_results_of_coco(server: LocalServer) -> None:
    content = picture()
    record = server.ask("/v1/detect", content).json
    results = server.ask("/v1/detect?format=coco&image_id=5", content).json
    assert [one["bbox"] for one in results] == [one["bbox"] for one in record["detections"]]
    assert all(one["image_id"] == 5 and one["segmentation"]["size"] == [60, 90] for one in results)
    several = server.ask("/v1/detect:batch?format=coco", *form(("a", content), ("b", content))).json
    assert [one["image_id"] for one in several] == [0] * len(results) + [1] * len(results)


def test_a_picture_is_drawn(server: LocalServer) -> None:
    content = picture()
    plain = np.asarray(Image.open(io.BytesIO(content)))
    reply = server.ask("/v1/detect?format=png", content)
    assert reply.headers["content-type"] == "image/png"
    drawn = np.asarray(Image.open(io.BytesIO(reply.body)))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()
    untouched = server.ask("/v1/detect?format=png&categories=", content)
    assert (np.asarray(Image.open(io.BytesIO(untouched.body))) == plain).all()


def test_an_image_with_nothing_in_it(server: LocalServer) -> None:
    reply = server.ask("/v1/detect?score_threshold=1", picture())
    assert (reply.status, reply.json["status"], reply.json["detections"]) == (200, "ok", [])
    assert server.ask("/v1/detect?score_threshold=1&format=coco", picture()).json == []


def test_models_are_described(server: LocalServer, predictor: Predictor) -> None:
    (model,) = server.ask("/v1/models").json["models"]
    assert model == server.ask("/v1/models/default").json
    assert model["fingerprint"] == predictor.fingerprint
    assert model["categories"] == [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}]
    assert (model["masks"], model["keypoints"]) == (True, None)
    assert model["limits"] == {"max_bytes": 1_000_000, "max_pixels": 100_000, "max_images": 4, "timeout_s": 30.0}


def test_health_and_counts(server: LocalServer) -> None:
    assert server.ask("/healthz").json == {"status": "alive"}
    assert server.ask("/readyz").json == {"status": "ready"}
    server.ask("/v1/detect", picture())
    lines = server.ask("/metrics").body.decode().splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert int(counts['maskrcnn_served_images_total{model="default",status="ok"}']) >= 1
    assert int(counts['maskrcnn_requests_total{path="/v1/detect",status="200"}']) >= 1


def test_the_interface_is_a_page(server: LocalServer) -> None:
    reply = server.ask("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    text = reply.body.decode()
    assert "POST /v1/detect" in text
    assert "<script" not in text
    assert "http" not in text
