"""The service on Ray Serve: the records of jobs.label alone and under load, other protocols, new weights, a lost
replica."""

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from maskrcnn_core.inference.predictor import load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines.cluster.config import ClusterConfig
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.run import label
from pipelines.serving.config import ServeConfig, ServeRun
from pipelines.serving.renderings import label_row
from pipelines.serving.run import serving
from tests.pipelines.serving.local_service import picture, save_finding_detector
from tests.pipelines.submission import free_port
from tests.small_detector import FINDING

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@dataclass(frozen=True)
class Served:
    """The service, and what labelling has written of the same images."""

    run: ServeRun
    address: str
    contents: dict[str, bytes]
    rows: dict[str, dict[str, Any]]

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.address}{path}", body), timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def detect(self, name: str) -> tuple[int, Any]:
        return self.ask("/v1/detect", self.contents[name])


def labelled(checkpoint: str, images: Path, output: Path) -> dict[str, dict[str, Any]]:
    """Rows of jobs.label by the names of the images' files."""
    settings = LabelConfig(num_workers=1, threads_per_worker=1, use_gpu=False)
    label(LabelRun(checkpoint, str(images), str(output), label=settings, cluster=ClusterConfig(ray=False)))
    rows = pq.read_table(output / "labels").to_pylist()
    return {Path(row["uri"]).name: row for row in rows}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    images = folder / "images"
    images.mkdir()
    sizes = [(60, 90), (90, 60), (64, 64), (48, 120)]
    contents = {f"{index}.png": picture(*sizes[index % 4], seed=index) for index in range(12)}
    for name, content in contents.items():
        (images / name).write_bytes(content)
    checkpoint = save_finding_detector(folder / "checkpoint")
    rows = labelled(checkpoint, images, folder / "labels")
    run = ServeRun(
        checkpoint,
        port=free_port(),
        serve=ServeConfig(threads=1, use_gpu=False, max_pixels=PredictorSettings().max_pixels, grpc_port=free_port()),
        cluster=ClusterConfig(num_cpus=6),
    )
    with serving(run) as address:
        yield Served(run, address, contents, rows)


def require_row(record: dict[str, Any], row: dict[str, Any]) -> None:
    """The same in every field but what names the image."""
    assert record.pop("timing")["model_ms"] > 0
    assert {**record, "image_id": row["image_id"], "uri": row["uri"]} == row


def test_records_are_those_of_labelling(served: Served) -> None:
    assert sum(len(row["detections"]) for row in served.rows.values()) > 20
    for name, row in served.rows.items():
        status, record = served.detect(name)
        assert status == 200
        require_row(record, row)


def test_records_are_the_same_under_load(served: Served) -> None:
    names = [*served.rows] * 15
    with ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(served.detect, names))
    assert {status for status, _ in answers} == {200}
    for name, (_, record) in zip(names, answers, strict=True):
        require_row(record, served.rows[name])


def test_triton_asks_over_grpc(served: Served) -> None:
    rpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    import numpy as np

    with rpc.InferenceServerClient(f"127.0.0.1:{served.run.serve.grpc_port}") as client:
        assert client.is_server_ready()
        assert client.is_model_ready("default")
        for name, content in list(served.contents.items())[:4]:
            tensor = rpc.InferInput("image", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([content], dtype=np.object_))
            result = client.infer("default", [tensor])
            found = served.rows[name]["detections"]
            assert result.as_numpy("boxes").tolist() == [one["bbox"] for one in found]
            assert result.as_numpy("scores").tolist() == [one["score"] for one in found]
            assert [text.decode() for text in result.as_numpy("masks_rle")] == [
                one["segmentation"]["counts"] for one in found
            ]
        with pytest.raises(rpc.InferenceServerException, match="no model 'other'"):
            client.infer("other", [tensor])


class Asking:
    """Clients that ask all the while, inside the block; what they were answered."""

    def __init__(self, served: Served, clients: int = 2) -> None:
        self._served, self._end = served, threading.Event()
        self.answers: list[tuple[str, int, Any]] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._end.is_set():
            for name in self._served.contents:
                self.answers.append((name, *self._served.detect(name)))
                time.sleep(0.02)  # two cores have to start processes meanwhile

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def deploy(run: ServeRun) -> None:
    """As `serve deploy` of the run's file, which needs Ray's dashboard for the same; waits for it."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from pipelines.serving.application import APPLICATION
    from pipelines.serving.deploy_file import deploy_document

    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(deploy_document(run)))
    end = time.monotonic() + 240
    while True:
        time.sleep(0.5)
        application = serve.status().applications[APPLICATION]
        if application.status.value == "RUNNING":
            break
        assert time.monotonic() < end, application


def deploy_first(served: Served) -> str:
    """The checkpoint of the fixture again; returns its fingerprint once that answers."""
    (fingerprint,) = {row["model"] for row in served.rows.values()}
    deploy(served.run)
    while served.ask("/v1/models")[1]["models"][0]["fingerprint"] != fingerprint:
        time.sleep(0.2)
    return fingerprint


@pytest.mark.slow  # processes of Ray Serve start
def test_new_weights_come_in_place(served: Served, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = tmp_path / "other"
    save_checkpoint(other, build_detector(FINDING, load_pretrained=False).state_dict(), FINDING)
    predictor = load_predictor(str(other), PredictorSettings())
    found = predictor.predict([*served.contents.values()])
    rows = {name: label_row(one, predictor.fingerprint) for name, one in zip(served.contents, found, strict=True)}
    before = deploy_first(served)
    pids = detector_pids()
    with Asking(served) as asking:
        deploy(replace(served.run, checkpoint=str(other)))
        while served.ask("/v1/models")[1]["models"][0]["fingerprint"] == before:
            time.sleep(0.2)
    assert detector_pids() == pids
    after = served.ask("/v1/models")[1]["models"][0]["fingerprint"]
    try:
        assert {status for _, status, _ in asking.answers} == {200}
        assert {record["model"] for _, _, record in asking.answers} == {before, after}
        for name, _, record in asking.answers:
            require_row(record, (served.rows if record["model"] == before else rows)[name])
    finally:
        deploy_first(served)


@pytest.mark.slow  # processes of Ray Serve start
def test_broken_weights_leave_the_old_ones(served: Served, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    before = deploy_first(served)
    pids = detector_pids()
    with Asking(served) as asking:
        deploy(replace(served.run, checkpoint=str(tmp_path / "broken")))
        while served.ask("/v1/models")[1]["models"][0]["update"] != "refused":
            time.sleep(0.2)
        time.sleep(5)
    assert {status for _, status, _ in asking.answers} == {200}
    assert {record["model"] for _, _, record in asking.answers} == {before}
    assert detector_pids() == pids
    deploy(served.run)
    assert served.detect("0.png")[1]["model"] == before


@pytest.mark.slow  # processes of Ray Serve start
def test_a_lost_replica_is_asked_again(served: Served) -> None:
    run = replace(served.run, serve=replace(served.run.serve, replicas=2))
    deploy(run)
    with Asking(served) as asking:
        while len(asking.answers) < 40:
            time.sleep(0.05)
        pids = detector_pids()
        os.kill(pids[0], signal.SIGKILL)
        count = len(asking.answers)
        while len(asking.answers) < count + 80:
            time.sleep(0.05)
    assert len(pids) == 2
    assert {status for _, status, _ in asking.answers} == {200}
    deploy(served.run)


def detector_pids() -> list[int]:
    """Processes of this machine that Ray calls replicas of the detector."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"ServeReplica:maskrcnn:detector-default" in title:
            found.append(int(entry.name))
    return found
