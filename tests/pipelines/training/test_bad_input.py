"""A run on images of which some are broken, read from S3 by a way that throttles and drops: it finishes, and with the
same losses whoever reads."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import numpy as np
import pytest
from PIL import Image

from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.training.sampler import BatchPlan
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.storage.config import StorageConfig
from pipelines.storage.s3_settings import applied
from pipelines.training.bad_images import read_bad_images
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.events import ImageReplaced, TrainingEvent
from pipelines.training.image_files import PatientFiles
from pipelines.training.run import train
from pipelines.training.sample_log import read_samples
from tests.pipelines.faulty_proxy import Faults, faulty_proxy
from tests.pipelines.training.test_equivalence import losses_of
from tests.pipelines.training.test_run import SIDE, SMALL, assert_equal_weights

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.ray]

IMAGES, BATCH, STEPS = 100, 4, 6
PLAN = BatchPlan([(SIDE, SIDE)] * IMAGES, batch_size=BATCH, seed=0, short_sides=(SIDE,))
# In the first and third batch, the one that would take the place of the second of them, and in the last batch.
GONE, DAMAGED, LARGE, LATE = (PLAN.batch(step)[slot].index for step, slot in ((0, 1), (2, 3), (3, 3), (5, 0)))
BROKEN = {GONE, DAMAGED, LARGE, LATE}


@pytest.fixture(scope="module")
def way(s3_folder: str) -> Iterator[tuple[str, Faults]]:
    """The address of a proxy before the S3 server; the environment has the server's own."""
    address = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert address.hostname is not None
    assert address.port is not None
    with faulty_proxy(address.hostname, address.port) as found:
        yield found


@pytest.fixture(scope="module")
def source(way: tuple[str, Faults], tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """A hundred grey pictures with a bright square on S3; two of them are not there, one is damaged, one too high."""
    client = boto3.client("s3", region_name="us-east-1")
    images, annotations = [], []
    for number in range(IMAGES):
        x = 4 + number % 30
        pixels = np.full((SIDE + (number == LARGE), SIDE, 3), 90, np.uint8)
        pixels[8:32, x : x + 24] = 220
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        body = content.getvalue()[:70] if number == DAMAGED else content.getvalue()
        if number not in (GONE, LATE):
            client.put_object(Bucket="bucket", Key=f"pictures/{number}.png", Body=body)
        images.append({"id": 1000 + number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        corners = [x, 8, x + 24, 8, x + 24, 32, x, 32]
        entry = {"id": number + 1, "image_id": 1000 + number, "category_id": 7, "iscrowd": 0}
        annotations.append({**entry, "bbox": [x, 8, 24, 24], "area": 24 * 24, "segmentation": [corners]})
    path = tmp_path_factory.mktemp("broken") / "instances.json"
    document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "door"}]}
    path.write_text(json.dumps(document))
    return DatasetConfig(images="s3://bucket/pictures", annotations=str(path))


@pytest.fixture(scope="module")
def ray_here(source: DatasetConfig) -> Iterator[None]:
    with connection.connect(ClusterConfig(num_cpus=4)):
        yield


@pytest.fixture
def faults(way: tuple[str, Faults]) -> Iterator[Faults]:
    found = way[1]
    found.counts = dict.fromkeys(found.counts, 0)
    found.throttle_every, found.drop_every = 13, 17
    yield found
    found.throttle_every = found.drop_every = 0
    found.refuse = ""


def run_with(output: Path, source: DatasetConfig, endpoint: str, steps: int = STEPS, **data: Any) -> TrainRun:
    return TrainRun(
        output=str(output),
        model=SMALL,
        data=DataConfig(train=source, check_images=0, **data),
        train=TrainConfig(
            steps=steps,
            batch_size=BATCH,
            learning_rate=0.002,
            warmup_steps=2,
            checkpoint_every=3,
            log_every=1,
            threads_per_worker=1,
        ),
        # The processes that read know of the proxy by this alone.
        storage=StorageConfig(endpoint_url=endpoint, max_attempts=12),
    )


@pytest.mark.slow  # five runs of a few steps
def test_broken_images_and_a_bad_way_to_them_change_nothing_but_a_list(
    ray_here: None, source: DatasetConfig, way: tuple[str, Faults], faults: Faults, tmp_path: Path
) -> None:
    expected: dict[int, dict[str, float]] = {}
    for name, reading in (
        ("thread", {"workers": 0}),
        ("loaders", {"workers": 2}),
        ("actors", {"reader": "ray", "workers": 2}),
    ):
        faults.counts = dict.fromkeys(faults.counts, 0)
        events: list[TrainingEvent] = []
        run = run_with(tmp_path / name, source, way[0], **reading)
        summary = train(run, events.append)
        assert (summary.steps, summary.bad_images) == (STEPS, len(BROKEN))
        assert faults.counts["throttled"] > 0, name
        assert faults.counts["dropped"] > 0, name
        bad = {image.image_id - 1000: image.status for image in read_bad_images(run.output)}
        assert bad == {GONE: "missing", DAMAGED: "unreadable", LARGE: "failed", LATE: "missing"}
        assert len([event for event in events if isinstance(event, ImageReplaced)]) == len(BROKEN)
        samples = read_samples(run.output)
        assert len(samples) == STEPS
        assert BROKEN.isdisjoint(image - 1000 for images in samples.values() for image in images)
        expected = expected or losses_of(events)
        assert losses_of(events) == expected, name  # bit by bit
        assert samples == read_samples(str(tmp_path / "thread"))

    # Cut in two, with a number of loaders for each half.
    first = run_with(tmp_path / "cut", source, way[0], steps=3, workers=2)
    assert train(first).bad_images == 3
    events = []
    summary = train(run_with(tmp_path / "cut", source, way[0], workers=0), events.append)
    assert (summary.resumed_from, summary.bad_images) == (3, len(BROKEN))
    assert losses_of(events) == {step: losses for step, losses in expected.items() if step > 3}
    assert_equal_weights(summary.last, str(tmp_path / "thread" / "checkpoints" / "last"))


def test_images_are_read_with_the_settings_and_patience_of_storage(
    source: DatasetConfig, way: tuple[str, Faults], faults: Faults
) -> None:
    files = PatientFiles(source.images)
    with applied(StorageConfig(endpoint_url=way[0], max_attempts=12)):
        whole = [number for number in range(40) if number not in BROKEN]
        contents = [files.read(f"{number}.png") for number in whole]
        assert all(Image.open(io.BytesIO(content)).size == (SIDE, SIDE) for content in contents)
        assert faults.counts["throttled"] > 0
        assert faults.counts["dropped"] > 0
        with pytest.raises(ImageError, match="no such file") as caught:
            files.read(f"{GONE}.png")
        assert caught.value.status == "missing"
        faults.refuse = "InvalidAccessKeyId"
        with pytest.raises(StorageError, match="access key is unknown"):  # of no image, and so none is replaced
            files.read(f"{whole[0]}.png")
