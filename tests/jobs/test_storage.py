"""Labels on a server that only the command line names: every command that reads them takes its address.

The environment names another one, where nobody listens.
"""

import io
import json
import os
from collections.abc import Iterator

import boto3
import pytest
from PIL import Image

from jobs import evaluate, export, report, verify
from pipelines import storage
from pipelines.labelling.config import LabelRun
from pipelines.storage.config import StorageConfig
from pipelines.storage.s3_settings import applied
from tests.fuzz.labelling_here import run_here

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

IMAGES = 4
LABELS, TRUTH = "s3://bucket/labelled", "s3://bucket/truth.json"
NOBODY = "http://127.0.0.1:9"


def picture(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (60 * index,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(s3_folder: str) -> Iterator[StorageConfig]:
    """A run labelled to a server that is named by its settings alone."""
    named = StorageConfig(os.environ["AWS_ENDPOINT_URL"], max_attempts=2)
    client = boto3.client("s3", region_name="us-east-1")
    for index in range(IMAGES):
        client.put_object(Bucket="bucket", Key=f"pictures/{index}.png", Body=picture(index))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", NOBODY)
        with applied(named):
            storage.write_bytes_atomically(TRUTH, truth())
        run_here(LabelRun("good", TRUTH, LABELS, image_root="s3://bucket/pictures", storage=named))
        yield named


def truth() -> bytes:
    """A box as large as the image in each: what the detector finds."""
    images = [{"id": 1 + index, "file_name": f"{index}.png", "width": 8, "height": 8} for index in range(IMAGES)]
    box = {"bbox": [0, 0, 8, 8], "area": 64, "iscrowd": 0, "category_id": 1}
    annotations = [{**box, "id": image["id"], "image_id": image["id"]} for image in images]
    return json.dumps(
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dark"}]}
    ).encode()


def flags(server: StorageConfig) -> list[str]:
    return ["--storage.endpoint_url", server.endpoint_url, "--storage.max_attempts", "2"]


def written(server: StorageConfig, uri: str) -> bytes:
    with applied(server):
        return storage.read_bytes(uri)


def test_it_is_verified(server: StorageConfig, capsys: pytest.CaptureFixture[str]) -> None:
    output = "s3://bucket/findings.json"
    assert verify.main(["--labels", LABELS, "--output", output, *flags(server)]) == 0
    assert f"{IMAGES} rows ({IMAGES} ok)" in capsys.readouterr().out
    assert json.loads(written(server, output))["passed"]


def test_it_is_exported(server: StorageConfig) -> None:
    output = "s3://bucket/results.json"
    assert export.main(["--labels", LABELS, "--format", "coco", "--output", output, *flags(server)]) == 0
    assert len(json.loads(written(server, output))) == IMAGES


def test_it_is_reported_with_its_pictures(server: StorageConfig, capsys: pytest.CaptureFixture[str]) -> None:
    output = "s3://bucket/page"
    assert report.main(["--labels", LABELS, "--output", output, *flags(server)]) == 0
    assert f"{IMAGES} images" in capsys.readouterr().out
    page = written(server, f"{output}/index.html")
    assert page.count(b"data:image/") >= IMAGES


def test_it_is_scored_with_a_report(server: StorageConfig) -> None:
    output, page = "s3://bucket/scores.json", "s3://bucket/scored"
    arguments = ["--labels", LABELS, "--annotations", TRUTH, "--output", output, "--report", page]
    assert evaluate.main([*arguments, *flags(server)]) == 0
    scores = json.loads(written(server, output))
    assert (scores["images"]["labelled"], scores["detections"]) == (IMAGES, IMAGES)
    assert b"Evaluation report" in written(server, f"{page}/index.html")


def test_without_the_flag_the_environments_server_is_asked(server: StorageConfig) -> None:
    assert verify.main(["--labels", LABELS, "--storage.max_attempts", "1", "--storage.connect_timeout", "1"]) == 2
