"""Ten times the images, the same memory: of Python and numpy (tracemalloc) and of Arrow (its pool's high-water mark).

What grows a little are Python's lists of free tuples and dictionaries, up to their limits.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from maskrcnn_core.export.formats import FORMATS, FormatName
from pipelines.exporting.config import ExportRun
from pipelines.exporting.run import export
from pipelines.labels import stream
from pipelines.labels.stream import open_labels
from pipelines.verification import run as verification
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.generated_labels import random_record, write_run

pytestmark = pytest.mark.alone

FEW, MANY = 20, 200
FREE_LISTS = 500_000
POOLS: list[pa.MemoryPool] = []
"""Every pool that was ever the default one: Arrow's threads and buffers go on to use it after it has been replaced."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """20 images in one file, and ten times these in ten."""
    folder = tmp_path_factory.mktemp("memory")
    records = [random_record(seed, most_objects=12) for seed in range(FEW)]
    write_run(folder / "few", records, rows_per_file=FEW)
    write_run(folder / "many", records * (MANY // FEW), rows_per_file=FEW)
    return folder / "few", folder / "many"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stream, verification):
        monkeypatch.setattr(module, "_ROWS_PER_BATCH", 10)


def peak_bytes(work: Callable[[], object]) -> tuple[int, int]:
    """Highest memory while `work` runs: of Python and numpy, and of Arrow. For tests that are `alone`."""
    usual = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(usual)
    POOLS.append(watched)
    pa.set_memory_pool(watched)
    if not tracemalloc.is_tracing():  # never stopped: see `tests.alone`
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        work()
        return tracemalloc.get_traced_memory()[1] - before, watched.max_memory()
    finally:
        pa.set_memory_pool(usual)


def growth(few: Callable[[], object], many: Callable[[], object]) -> int:
    """How much more `many` takes, bytes, in a test that is `alone`; `few` runs twice, since what it imports and caches
    counts for neither."""
    few()
    few_peak, many_peak = peak_bytes(few), peak_bytes(many)
    assert few_peak[1] > 10_000  # the reading was seen
    return sum(many_peak) - sum(few_peak)


def test_holding_all_rows_would_be_seen(runs: tuple[Path, Path]) -> None:
    few, many = (open_labels(str(run), 0.0, ()) for run in runs)
    assert growth(lambda: list(few.labelled()), lambda: list(many.labelled())) > 2 * FREE_LISTS


@pytest.mark.parametrize("format", FORMATS)
def test_export(runs: tuple[Path, Path], tmp_path: Path, format: FormatName) -> None:
    few, many = runs
    names = iter("abc")

    def write(run: Path) -> None:
        export(ExportRun(str(run), format, str(tmp_path / next(names))))

    assert growth(lambda: write(few), lambda: write(many)) < FREE_LISTS


def test_verify(runs: tuple[Path, Path]) -> None:
    few, many = runs
    assert growth(lambda: verify(VerifyRun(str(few))), lambda: verify(VerifyRun(str(many)))) < FREE_LISTS
