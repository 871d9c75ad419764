"""Labelling from S3 to S3, on a server of this machine behind a proxy that misbehaves."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskrcnn_core.errors import ImageError, StorageError
from pipelines import storage
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.run import evaluate, write_numbers
from pipelines.images.reading import ImageReader
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.progress import LabelProgress
from pipelines.labelling.run import LabelSummary, label
from pipelines.storage.config import StorageConfig
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.fake_detector import FAKE
from tests.pipelines.faulty_proxy import Faults, faulty_proxy

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.ray]

COUNT = 1500


@pytest.fixture(scope="module")
def proxy(s3_folder: str) -> Iterator[Faults]:
    """Faults of the way to S3; processes that start later take the way through the proxy."""
    import os

    address = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert address.hostname is not None
    assert address.port is not None
    with faulty_proxy(address.hostname, address.port) as (url, faults), pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", url)
        yield faults


@pytest.fixture(scope="module")
def images(proxy: Faults) -> str:
    """A prefix with 1,500 pictures in 15 sub-prefixes."""
    client = boto3.client("s3", region_name="us-east-1")
    for index in range(COUNT):
        shade, buffer = (40 * index) % 256, io.BytesIO()
        Image.new("RGB", (8, 8 + index % 3), (shade, shade, shade)).save(buffer, "PNG")
        client.put_object(Bucket="bucket", Key=f"pictures/{index % 15:02d}/{index:05d}.png", Body=buffer.getvalue())
    return "s3://bucket/pictures"


@pytest.fixture(scope="module")
def cluster(images: str) -> Iterator[None]:
    with connect(ClusterConfig(num_cpus=4)):
        yield


@pytest.fixture
def faults(proxy: Faults) -> Iterator[Faults]:
    proxy.counts = dict.fromkeys(proxy.counts, 0)
    yield proxy
    proxy.throttle_every = proxy.drop_every = 0
    proxy.refuse = proxy.forbidden = ""


def rows_of(summary: LabelSummary) -> list[dict]:
    tables = []
    for uri in storage.list_files(summary.labels, ".parquet"):
        filesystem, path = storage.filesystem_and_path(uri)
        tables.append(pq.read_table(path, filesystem=filesystem))
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["uri"])


@pytest.mark.usefixtures("cluster")
def test_prefix_to_labels_with_throttling_dropped_connections_and_a_resume(images: str, faults: Faults) -> None:
    faults.throttle_every, faults.drop_every = 29, 97
    patient = StorageConfig(max_attempts=12)
    settings = LabelConfig(rows_per_file=100)
    run = LabelRun("good", images, "s3://bucket/out", label=settings, storage=patient)

    def stop(progress: LabelProgress) -> None:
        if progress.done >= 400:
            raise InterruptedError("as Ctrl-C would")

    with pytest.raises(InterruptedError):
        label(run, stop, detector=FAKE)
    summary = label(run, detector=FAKE)
    assert (summary.images, summary.statuses) == (COUNT, {"ok": COUNT})
    assert summary.labelled_now < COUNT
    assert faults.counts["throttled"] > 50
    assert faults.counts["dropped"] > 15
    rows = rows_of(summary)
    names = [f"{images}/{index % 15:02d}/{index:05d}.png" for index in range(COUNT)]
    assert [row["uri"] for row in rows] == sorted(names)
    assert len({row["image_id"] for row in rows}) == COUNT
    by_name = {row["uri"]: row for row in rows}
    for index, name in enumerate(names):
        assert by_name[name]["height"] == 8 + index % 3
        assert by_name[name]["detections"][0]["category_id"] == (7 if (40 * index) % 256 > 127 else 1)
    assert label(run, detector=FAKE).skipped_because_done
    verified = verify(VerifyRun(labels="s3://bucket/out"))
    assert verified.passed
    assert (verified.rows, verified.images) == (COUNT, COUNT)
    assert_scores_of_themselves(rows)
    with pytest.raises(StorageError, match="holds another run"):
        label(replace(run, checkpoint="slow"), detector=FAKE)


def assert_scores_of_themselves(rows: list[dict]) -> None:
    """With what was found as the ground truth, on S3 as well, every number is 1."""
    objects = [(row["image_id"], found) for row in rows for found in row["detections"]]
    annotations = {
        "images": [{"id": row["image_id"], "width": row["width"], "height": row["height"]} for row in rows],
        "categories": [
            {"id": id, "name": name} for id, name in {(o["category_id"], o["category"]) for _, o in objects}
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": found["category_id"],
                "bbox": found["bbox"],
                "area": found["bbox"][2] * found["bbox"][3],
                "segmentation": found["segmentation"],
                "iscrowd": 0,
            }
            for number, (image_id, found) in enumerate(objects, 1)
        ],
    }
    storage.write_bytes_atomically("s3://bucket/truth.json", json.dumps(annotations).encode())
    output = "s3://bucket/scores.json"
    scored = evaluate(EvaluateRun(labels="s3://bucket/out", annotations="s3://bucket/truth.json", output=output))
    write_numbers(output, scored)
    written = json.loads(storage.read_bytes(output))
    for kind in ("bbox", "segm"):
        assert list(scored.scores.stats[kind][:2]) == [1.0, 1.0]
        assert written["stats"][kind][0] == 1.0


@pytest.mark.usefixtures("cluster")
def test_a_forbidden_object_is_a_row_and_a_missing_one_too(images: str, faults: Faults) -> None:
    faults.forbidden = "00002.png"
    uris = [f"{images}/{index:02d}/{index:05d}.png" for index in range(12)] + [f"{images}/none.png"]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": uris}), sink)
    storage.write_bytes_atomically("s3://bucket/list.parquet", sink.getvalue().to_pybytes())
    summary = label(LabelRun("good", "s3://bucket/list.parquet", "s3://bucket/some"), detector=FAKE)
    assert summary.statuses == {"ok": 11, "unreadable": 1, "missing": 1}
    status = {row["uri"]: (row["status"], row["error"]) for row in rows_of(summary)}
    assert status[uris[2]][1].startswith("access denied")
    assert status[uris[-1]] == ("missing", "no such file")


@pytest.mark.parametrize(
    ("code", "message"),
    [("InvalidAccessKeyId", "access key is unknown"), ("SignatureDoesNotMatch", "secret key does not fit")],
)
@pytest.mark.usefixtures("cluster")
def test_wrong_credentials_stop_the_job_at_once(images: str, faults: Faults, code: str, message: str) -> None:
    faults.refuse = code
    reader = ImageReader(1000)
    with pytest.raises(StorageError, match=message):
        reader.read(f"{images}/00/00000.png")
    with pytest.raises(StorageError, match=message) as raised:
        label(LabelRun("good", images, "s3://bucket/never"), detector=FAKE)
    assert "\n" not in str(raised.value)


def test_a_bucket_closed_to_these_credentials_ends_the_run_after_some_images(images: str, faults: Faults) -> None:
    reader = ImageReader(1000)
    assert isinstance(reader.read(f"{images}/00/00000.png"), bytes)
    faults.refuse = "AccessDenied"
    for _ in range(15):
        failure = reader.read(f"{images}/00/00000.png")
        assert isinstance(failure, ImageError)
        assert failure.status == "unreadable"
    with pytest.raises(StorageError, match=r"16 images in a row could not be read.*check the rights"):
        reader.read(f"{images}/00/00000.png")
