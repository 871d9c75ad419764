"""One stream of images through a worker's detector: what of different chunks may do to one another, and what not."""

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.labels import ImageRecord
from pipelines.cluster.connection import NodeCapacity
from pipelines.labelling import worker as labelling
from pipelines.labelling.device_board import BrokenDetectorError
from pipelines.labelling.progress import Board, ProgressBoard, Work
from pipelines.labelling.worker import LabelWorker
from pipelines.labelling.worker_settings import WorkerSettings
from tests.pipelines.fake_detector import CATEGORIES

WAIT = 30.0


class BatchingPredictor:
    """Answers once it has `batch` images, or at a pause, the last one first; keeps what it was given."""

    fingerprint, categories, max_proposals, idle_since = "batching", CATEGORIES, 0, 0.0

    def __init__(self, batch: int, seconds: float = 0.0) -> None:
        self._batch, self._seconds = batch, seconds
        self.batches: list[list[str]] = []
        self.fault: Exception | None = None
        self.failing = False

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        held: list[Request] = []
        for request in requests:
            if request is not None:
                held.append(request)
            if held and (request is None or len(held) == self._batch):
                yield self._answer(held)
                held = []
        if held:
            yield self._answer(held)

    def _answer(self, held: list[Request]) -> list[tuple[int, ImageRecord]]:
        time.sleep(self._seconds)
        if self.fault is not None:
            raise self.fault
        self.batches.append([bytes(request.content).decode() for request in held])  # type: ignore[arg-type]
        return [(request.key, self._record(request)) for request in reversed(held)]

    def _record(self, request: Request) -> ImageRecord:
        if self.failing:
            return ImageRecord("failed", "RuntimeError: broken", None, None)
        return ImageRecord("ok", None, int(bytes(request.content).decode().split("-")[1]), 1)  # type: ignore[arg-type]

    def propose_each(self, requests: Iterable[Request | None]) -> Any:
        raise AssertionError


class Names:
    """Reads an image's name in place of the image; `gone` ends the run, `slow` comes when it is let."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.let = threading.Event()

    def read(self, uri: str) -> bytes | ImageError:
        time.sleep(self.seconds)
        if "gone" in uri:
            raise StorageError("no such bucket")
        if "slow" in uri:
            assert self.let.wait(WAIT)
        return uri.encode()

    def late(self, uri: str, seconds: float) -> ImageError:
        raise AssertionError


def worker_of(
    predictor: BatchingPredictor, board: Board | None = None, reader: Names | None = None, group_size: int = 4
) -> LabelWorker:
    settings = WorkerSettings("x", PredictorSettings(), threads=1, group_size=group_size)
    return LabelWorker(lambda *_: predictor, settings, board or ProgressBoard(), reader or Names())


def rows(name: str, count: int, start: int = 0) -> pa.Table:
    numbers = range(start, start + count)
    return pa.table({"image_id": [*numbers], "uri": [f"{name}-{number}" for number in numbers]})


def widths(table: pa.Table) -> list[int]:
    found: list[int] = table.column("width").to_pylist()
    return found


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def test_batches_go_on_over_groups_and_chunks(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.labelling.detector_stream._PAUSE_SECONDS", 1.0)  # no busy machine looks like a pause
    predictor = BatchingPredictor(6)
    reader = Names()
    worker = worker_of(predictor, reader=reader)
    first = threads.submit(worker.label, pa.concat_tables([rows("slow", 1), rows("a", 9, 1)]))
    time.sleep(0.1)  # the chunk that came first goes first
    second = threads.submit(worker.label, rows("b", 8, 10))
    reader.let.set()
    assert widths(first.result(WAIT)) == [*range(10)]
    assert widths(second.result(WAIT)) == [*range(10, 18)]
    assert [len(batch) for batch in predictor.batches] == [6, 6, 6]
    # In which order is up to the threads of the chunks, which put images in side by side.
    assert any(0 < sum(name.startswith("b") for name in batch) < 6 for batch in predictor.batches)


def test_a_chunk_alone_waits_for_no_other() -> None:
    predictor = BatchingPredictor(100)
    worker = worker_of(predictor)
    assert widths(worker.label(rows("a", 10))) == [*range(10)]
    assert widths(worker.label(rows("b", 3))) == [0, 1, 2]
    assert worker.label(rows("c", 0)).num_rows == 0
    assert sum(map(len, predictor.batches)) == 13


def test_a_chunk_that_storage_ends_costs_no_other(threads: ThreadPoolExecutor) -> None:
    board = ProgressBoard()
    worker = worker_of(BatchingPredictor(4), board)
    first = threads.submit(worker.label, pa.concat_tables([rows("a", 6), rows("gone", 1, 6), rows("a", 30, 7)]))
    second = threads.submit(worker.label, rows("b", 40, 50))
    with pytest.raises(StorageError, match="no such bucket"):
        first.result(WAIT)
    assert widths(second.result(WAIT)) == [*range(50, 90)]
    assert widths(worker.label(rows("a", 40))) == [*range(40)]  # what it had begun to read holds nothing up
    assert [board.begin(key) for key in (0, 4, 50)] == [1, 1, 1]  # nor is any of it suspected


def test_a_fault_of_the_detector_ends_every_chunk_and_the_next_one_begins_anew(threads: ThreadPoolExecutor) -> None:
    predictor = BatchingPredictor(4, seconds=0.02)
    worker = worker_of(predictor)
    predictor.fault = MemoryError("no more")
    chunks = [threads.submit(worker.label, rows(name, 40, start)) for name, start in (("a", 0), ("b", 100))]
    for chunk in chunks:
        with pytest.raises(MemoryError, match="no more"):
            chunk.result(WAIT)
    predictor.fault = None
    assert widths(worker.label(rows("c", 40))) == [*range(40)]


def test_images_that_fail_in_a_row_end_every_chunk(threads: ThreadPoolExecutor) -> None:
    predictor = BatchingPredictor(1)
    predictor.failing = True
    worker = worker_of(predictor)
    chunks = [threads.submit(worker.label, rows(name, 40, start)) for name, start in (("a", 0), ("b", 100))]
    for chunk in chunks:
        with pytest.raises(
            BrokenDetectorError, match="failed on 16 images in a row, the last time with: RuntimeError: b"
        ):
            chunk.result(WAIT)


def test_a_group_that_is_suspected_goes_image_by_image_with_nothing_else_under_way(threads: ThreadPoolExecutor) -> None:
    board, predictor = ProgressBoard(), BatchingPredictor(3)
    board.begin(4)  # images 4 to 7 were begun, and not finished
    worker = worker_of(predictor, board)
    chunks = [threads.submit(worker.label, rows("a", 12)), threads.submit(worker.label, rows("b", 12, 20))]
    assert [widths(chunk.result(WAIT)) for chunk in chunks] == [[*range(12)], [*range(20, 32)]]
    alone = [batch for batch in predictor.batches if any(name in batch for name in ("a-4", "a-5", "a-6", "a-7"))]
    assert alone == [["a-4"], ["a-5"], ["a-6"], ["a-7"]]
    assert predictor.batches[predictor.batches.index(["a-4"]) :][:4] == alone
    assert board.snapshot().images == 24
    assert [board.begin(key) for key in (0, 4, 8, 20, -5)] == [1] * 5


def test_every_group_is_begun_and_done_once() -> None:
    class Noting(ProgressBoard):
        def __init__(self) -> None:
            super().__init__()
            self.begun: list[int] = []
            self.works: list[Work] = []

        def begin(self, key: int) -> int:
            self.begun.append(key)
            return super().begin(key)

        def done(self, key: int, work: Work) -> None:
            assert key in self.begun
            self.works.append(work)
            super().done(key, work)

    board = Noting()
    worker_of(BatchingPredictor(5), board).label(rows("a", 10))
    assert board.begun == [0, 4, 8]
    assert sorted(work.images for work in board.works) == [2, 4, 4]


@pytest.mark.parametrize(("computing", "reading", "least", "most"), [(0.02, 0.0, 0.0, 0.3), (0.0, 0.1, 0.7, 1.0)])
def test_time_is_told_apart_by_what_it_was_spent_on(
    computing: float, reading: float, least: float, most: float
) -> None:
    board = ProgressBoard()
    worker = worker_of(BatchingPredictor(1, computing), board, Names(reading))
    worker.label(rows("a", 40))
    counts = board.snapshot()
    assert least <= counts.waiting_share <= most
    assert counts.seconds - 0.1 <= counts.busy + counts.waited <= counts.seconds + 2.0  # from before the first group


@pytest.mark.parametrize(
    ("node", "settings", "threads"),
    [
        (None, {"workers_per_node": 3}, 32),  # without Ray
        (NodeCapacity(96, 8), {"device": "cuda", "cpus": 2}, 12),  # by this machine's GPUs,
        (NodeCapacity(96, 8), {"device": "cuda", "cpus": 2, "workers_per_gpu": 2}, 6),
        (NodeCapacity(16, 1), {"device": "cuda", "cpus": 2, "workers_per_node": 8}, 96),  # not by those of another
        (NodeCapacity(96, 0), {"cpus": 8, "workers_per_node": 0}, 8),  # a pool that grows fills it
        (NodeCapacity(4, 0), {"cpus": 3, "workers_per_node": 1}, 96),
        (NodeCapacity(4, 0), {"cpus": 1, "workers_per_node": 2}, 48),
        (NodeCapacity(4, 0), {"cpus": 8, "workers_per_node": 0}, 96),
        (NodeCapacity(96, 8), {"cpus": 2, "threads": 5}, 5),
    ],
)
def test_threads_are_a_share_of_the_machine_that_the_worker_is_on(
    node: NodeCapacity | None, settings: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    monkeypatch.setattr("pipelines.cluster.connection.own_node", lambda: node)
    monkeypatch.setattr(labelling, "physical_cores", lambda: 96)
    monkeypatch.setattr("torch.set_num_threads", found.append)
    predictor = PredictorSettings(device=settings.pop("device", "cpu"))
    labelling._load(lambda *_: BatchingPredictor(1), WorkerSettings("x", predictor, **settings))
    assert found == [threads]


def test_a_label_file_is_written_while_the_images_of_another_go_on(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, worker_is_writing = BatchingPredictor(4), threading.Event()
    worker = worker_of(predictor)
    make_table = LabelWorker._table

    def waiting(self: LabelWorker, ids: list[int], *some: Any) -> pa.Table:
        if ids[0] == 0:  # it is made once all images of the other chunk have been through the detector
            worker_is_writing.set()
            deadline = time.monotonic() + WAIT
            while sum(map(len, predictor.batches)) < 8 + 80:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return make_table(self, ids, *some)

    monkeypatch.setattr(LabelWorker, "_table", waiting)
    first = threads.submit(worker.label, rows("a", 8))
    assert worker_is_writing.wait(WAIT)
    assert widths(worker.label(rows("b", 80, 100))) == [*range(100, 180)]
    assert widths(first.result(WAIT)) == [*range(8)]
