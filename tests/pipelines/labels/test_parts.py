"""Who reads label files: this process up to a limit, beyond it tasks of a cluster; the answers come in order."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from maskrcnn_core.errors import StorageError
from maskrcnn_core.export.formats import FormatName
from maskrcnn_core.report.settings import PicturesConfig
from pipelines.cluster.config import ClusterConfig
from pipelines.evaluation.config import EvaluateConfig, EvaluateRun
from pipelines.evaluation.run import evaluate
from pipelines.exporting.config import ExportConfig, ExportRun
from pipelines.exporting.run import export
from pipelines.labels import parts
from pipelines.labels.files import category_names, label_files
from pipelines.labels.parts import HERE, readers_for
from pipelines.report.config import ReportRun
from pipelines.report.run import write_report
from pipelines.storage.config import StorageConfig
from tests.generated_labels import CATEGORIES, failed_record, random_record, write_run
from tests.pipelines.exporting.test_parts import contents
from tests.pipelines.imitated_tasks import imitated_readers


def test_parts_hold_all_files_in_order() -> None:
    assert HERE.parts(["a", "b", "c"]) == [["a", "b", "c"]]
    assert imitated_readers(2).parts(["a", "b", "c"]) == [["a", "b"], ["c"]]
    assert HERE.parts([]) == imitated_readers(2).parts([]) == []


@pytest.mark.parametrize("files", [[], ["a"], ["a", "b", "c", "d", "e"]])
def test_answers_come_in_order(files: list[str]) -> None:
    readers = imitated_readers(2)
    some = [(part,) for part in readers.parts(files)]
    assert [name for part in readers.in_order(list, some) for name in part] == files


def test_few_files_need_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.connection.connect", lambda *_, **__: pytest.fail("has asked for a cluster"))
    with readers_for(parts.MOST_FILES_HERE, ClusterConfig(), StorageConfig()) as readers:
        assert readers is HERE


def test_category_names_of_parts(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [random_record(seed) for seed in range(7)], rows_per_file=1)
    names = category_names(label_files(str(tmp_path / "run")), imitated_readers(2))
    assert names == {one.id: one.name for one in CATEGORIES}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture
def many(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that counts as one of many files."""
    monkeypatch.setattr(parts, "MOST_FILES_HERE", 3)
    monkeypatch.setattr(parts, "_FILES_OF_A_TASK", 2)
    records = [*map(random_record, range(9)), failed_record()]
    names = [f"/data/pictures/{number}.jpg" for number in range(10)]
    write_run(tmp_path / "run", records, rows_per_file=2, names=names)
    return tmp_path / "run"


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_rays_tasks_give_what_this_process_gives(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, pictures = ExportConfig(link_images=True), PicturesConfig(per_gallery=0)
    formats: tuple[FormatName, ...] = ("coco_dataset", "yolo", "cvat")
    images = [{"id": number} for number in (103, 107, 9)]
    categories = [{"id": one.id, "name": one.name} for one in CATEGORIES]
    annotations = {"images": images, "annotations": [], "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(annotations))

    def everything(place: Path, distributed: bool) -> list[object]:
        files = [export(ExportRun(str(many), name, str(place / name), settings)) for name in formats]
        page = write_report(ReportRun(str(many), str(tmp_path / "page"), pictures=pictures))
        found = EvaluateConfig(distributed="always" if distributed else "never")
        scores = evaluate(EvaluateRun(str(many), str(tmp_path / "val.json"), evaluate=found)).scores
        counts = [(one.images, one.objects, one.failed, one.left_out, one.renamed) for one in files]
        return [counts, page.images, page.megabytes, scores, *(contents(place / name) for name in formats)]

    there = everything(tmp_path / "there", True)
    monkeypatch.setattr(parts, "MOST_FILES_HERE", 100)
    assert everything(tmp_path / "here", False) == there


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_an_error_of_a_task_is_one_line_and_leaves_nothing(many: Path, tmp_path: Path) -> None:
    torn = Path(label_files(str(many))[1])
    torn.write_bytes(torn.read_bytes()[:-5])
    for work in (
        lambda: export(ExportRun(str(many), "yolo", str(tmp_path / "out" / "yolo"))),
        lambda: write_report(ReportRun(str(many), str(tmp_path / "page"))),
    ):
        with pytest.raises(StorageError, match=f"{torn.name}: cannot be read as Parquet"):
            work()
    assert not (tmp_path / "out").exists()
