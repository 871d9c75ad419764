"""Label Studio's questions to an ML backend, and what its own SDK says of the answers."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_core.data.generated.pictures import CATEGORIES, generate_picture
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.config import ServeConfig
from tests.pipelines.serving.function_detectors import annotated_record, knowing_detector
from tests.pipelines.serving.label_studio.site import LEGACY, Site, running_site
from tests.pipelines.serving.local_service import LocalServer, local_server

BRUSH = """<View><Image name="img" value="$photo"/>
<BrushLabels name="brush" toName="img"><Label value="Person"/><Label value="star"/></BrushLabels>
<KeyPointLabels name="points" toName="img"><Label value="nose"/><Label value="left_wrist"/></KeyPointLabels></View>"""
POLYGONS = BRUSH.replace("BrushLabels", "PolygonLabels")
BOXES = """<View><Image name="img" value="$photo"/>
<RectangleLabels name="boxes" toName="img"><Label value="Person"/><Label value="star"/></RectangleLabels></View>"""
PICTURE = "/data/upload/1/2.png"


@pytest.fixture(scope="module")
def known() -> tuple[bytes, ImageRecord]:
    """A picture with people and stars, and what is in it."""
    drawn = generate_picture(2, seed=5, image_size=(420, 640))
    stream = io.BytesIO()
    Image.fromarray(drawn.pixels).save(stream, "PNG")
    return stream.getvalue(), annotated_record(drawn.annotations, CATEGORIES, *drawn.pixels.shape[:2])


@pytest.fixture(scope="module")
def site(known: tuple[bytes, ImageRecord]) -> Iterator[Site]:
    with running_site() as site:
        site.files[PICTURE] = known[0]
        site.files["/data/upload/1/text.png"] = b"no picture"
        site.token = f"Token {LEGACY}"
        yield site


@pytest.fixture(scope="module")
def server(
    known: tuple[bytes, ImageRecord], site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "token").write_text(LEGACY)
    (folder / "keys").write_text(f"studio {hashlib.sha256(b'secret').hexdigest()}\n")
    config = ServeConfig(
        label_studio=site.address,
        label_studio_token=str(folder / "token"),
        label_studio_min_score=0.3,
        keys=str(folder / "keys"),
    )
    detector = knowing_detector({hashlib.sha256(known[0]).hexdigest(): known[1]}, CATEGORIES)
    with local_server({"first": detector, "second": detector}, config) as server:
        yield server


def ask(server: LocalServer, path: str, document: object = None, key: str = "secret") -> Any:
    """As Label Studio does, with a user's name and a password."""
    headers = {"Authorization": f"Basic {base64.b64encode(f'anyone:{key}'.encode()).decode()}"}
    body = None if document is None else json.dumps(document).encode()
    return server.ask(path, body, headers | ({"Content-Type": "application/json"} if body else {}))


def predict(server: LocalServer, interface: str, *places: str, path: str = "/label-studio/predict") -> Any:
    tasks = [{"id": number, "data": {"photo": place}} for number, place in enumerate(places, 1)]
    params = {"login": None, "password": None, "context": None}
    return ask(server, path, {"tasks": tasks, "project": "1.5", "label_config": interface, "params": params})


def shown(record: ImageRecord) -> list[Any]:
    return [one for one in record.detections if one.score >= 0.3 and one.category in ("person", "star")]


def test_health_and_setup(server: LocalServer) -> None:
    assert ask(server, "/label-studio/health").json == {"status": "UP", "model_class": "first"}
    assert ask(server, "/label-studio/second/health").json["model_class"] == "second"
    assert ask(server, "/label-studio/third/health").status == 404
    answer = ask(
        server, "/label-studio/setup", {"project": "1.5", "schema": BRUSH, "hostname": "x", "access_token": "y"}
    )
    assert answer.json == {"model_version": "0123456789abcdef" * 2}
    assert ask(server, "/label-studio/setup", {"project": "1.5", "schema": "<View/>"}).status == 422
    assert ask(server, "/label-studio/webhook", {"action": "PROJECT_UPDATED"}).status == 201
    assert ask(server, "/label-studio/health", key="wrong").status == 401
    assert server.ask("/label-studio/health").status == 401


@pytest.mark.parametrize("path", ["/label-studio/predict", "/label-studio/second/predict"])
def test_masks_of_the_projects_labels(server: LocalServer, known: tuple[bytes, ImageRecord], path: str) -> None:
    answer = predict(server, BRUSH, PICTURE, path=path)
    assert answer.status == 200
    assert answer.json["model_version"] == "0123456789abcdef" * 2
    (result,) = answer.json["results"]
    expected = shown(known[1])
    brushes = [region for region in result["result"] if region["type"] == "brushlabels"]
    assert [region["value"]["brushlabels"] for region in brushes] == [
        [{"person": "Person", "star": "star"}[one.category]] for one in expected
    ]
    assert {region["from_name"] for region in brushes} == {"brush"}
    assert {region["to_name"] for region in result["result"]} == {"img"}
    assert [region["score"] for region in brushes] == pytest.approx([one.score for one in expected])
    points = [region for region in result["result"] if region["type"] == "keypointlabels"]
    assert {region["value"]["keypointlabels"][0] for region in points} == {"nose", "left_wrist"}
    assert {region["parentID"] for region in points} <= {region["id"] for region in brushes}
    assert result["score"] == pytest.approx(min(one.score for one in expected))


@pytest.mark.parametrize(("interface", "kind"), [(POLYGONS, "polygonlabels"), (BOXES, "rectanglelabels")])
def test_other_projects(server: LocalServer, known: tuple[bytes, ImageRecord], interface: str, kind: str) -> None:
    (result,) = predict(server, interface, PICTURE).json["results"]
    kinds = [region["type"] for region in result["result"] if region["type"] != "keypointlabels"]
    assert kinds == [kind] * len(shown(known[1]))


def test_one_bad_picture_leaves_the_others(server: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
    answer = predict(server, BRUSH, PICTURE, "/data/upload/1/text.png", "/none.png", "http://127.0.0.1:1/a.png")
    first, *others = answer.json["results"]
    assert first["result"]
    assert [other["result"] for other in others] == [[], [], []]
    assert "3 of 4 pictures were not looked at" in caplog.text


@pytest.mark.parametrize(
    ("place", "status"), [("/data/upload/1/text.png", 422), ("/none.png", 404), ("ftp://x/y", 404)]
)
def test_nothing_but_bad_pictures(server: LocalServer, place: str, status: int) -> None:
    assert predict(server, BRUSH, place).status == status


def test_no_task(server: LocalServer) -> None:
    assert predict(server, BRUSH).json["results"] == []


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ([], 422),
        ({}, 422),
        ({"label_config": 3, "tasks": []}, 422),
        ({"label_config": "<View", "tasks": []}, 422),
        ({"label_config": BRUSH}, 422),
        ({"label_config": BRUSH, "tasks": {}}, 422),
        ({"label_config": BRUSH, "tasks": [3]}, 422),
        ({"label_config": BRUSH, "tasks": [{"data": {"image": PICTURE}}]}, 422),
        ({"label_config": BRUSH, "tasks": [{"data": {"photo": None}}]}, 422),
        ({"label_config": BRUSH, "tasks": [{}] * 1001}, 413),
    ],
)
def test_questions_that_make_no_sense(server: LocalServer, document: Any, status: int) -> None:
    answer = ask(server, "/label-studio/predict", document)
    assert answer.status == status
    assert answer.json["status"] == status


def test_no_json(server: LocalServer) -> None:
    headers = {"Authorization": f"Basic {base64.b64encode(b'a:secret').decode()}"}
    for body in (b"{", b"[" * 200_000, b"\xff"):
        assert server.ask("/label-studio/predict", body, headers).status == 400


CHECK = """
import json, sys
import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
found = []
for interface, prediction in json.load(sys.stdin):
    errors = LabelInterface(interface).validate_prediction(prediction, return_errors=True)
    brushes = [region for region in prediction["result"] if region["type"] == "brushlabels"]
    masks = [
        np.reshape(decode_rle(region["value"]["rle"]), (region["original_height"], region["original_width"], 4))[..., 3]
        for region in brushes
    ]
    found.append({"errors": errors, "runs": [np.flatnonzero(np.diff(mask.ravel() > 0)).tolist() for mask in masks]})
json.dump(found, sys.stdout)
"""


def sdk_python() -> str:
    """An interpreter with label-studio-sdk, whose pins do not go together with this project's packages."""
    named = os.environ.get("LABEL_STUDIO_PYTHON")
    if named is None and importlib.util.find_spec("label_studio_sdk") is None:
        pytest.skip("no label-studio-sdk; LABEL_STUDIO_PYTHON may name an interpreter of an environment that has it")
    return named or sys.executable


def test_the_sdk_takes_the_predictions(server: LocalServer, known: tuple[bytes, ImageRecord], tmp_path: Path) -> None:
    python = sdk_python()
    questions = [
        (interface, predict(server, interface, PICTURE).json["results"][0]) for interface in (BRUSH, POLYGONS, BOXES)
    ]
    (tmp_path / "check.py").write_text(CHECK)
    done = subprocess.run(
        [python, str(tmp_path / "check.py")], input=json.dumps(questions), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["errors"] for answer in answers] == [[], [], []]
    record = known[1]
    masks = [
        coco_mask.decode({"size": [record.height, record.width], "counts": one.rle_counts}) for one in shown(record)
    ]
    assert answers[0]["runs"] == [np.flatnonzero(np.diff(mask.ravel())).tolist() for mask in masks]
    assert len(masks) >= 3
