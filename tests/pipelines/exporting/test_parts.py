"""Labels in many files, exported by tasks: byte for byte what one process writes."""

import os
from pathlib import Path
from typing import Any

import boto3
import pytest

import pipelines.exporting.run as exporting
from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.export.formats import FORMATS, FormatName, load_format
from maskrcnn_core.export.source import JoinedList, Listed, Once, file_text
from maskrcnn_core.records.labels import ImageRecord
from pipelines import storage
from pipelines.exporting import part
from pipelines.exporting.config import ExportConfig, ExportRun
from pipelines.exporting.run import export
from pipelines.labels.files import label_files
from pipelines.labels.stream import open_labels
from tests.generated_labels import failed_record, random_record, write_run
from tests.pipelines.exporting.test_memory import FREE_LISTS, growth
from tests.pipelines.imitated_tasks import imitated_readers_for

NOTHING = ImageRecord("ok", None, 50, 40)
STYLES: list[dict[str, Any]] = [{}, {"polygons": True, "min_score": 0.4, "categories": ("person",)}]


@pytest.fixture
def in_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "readers_for", imitated_readers_for)


def contents(place: Path) -> dict[str, bytes | str]:
    """Of every file that begins with this name, or lies below it; links by where they lead."""
    found: dict[str, bytes | str] = {}
    for path in [place, *place.parent.glob(f"{place.name}.*"), *place.rglob("*")]:
        if path.is_symlink():
            found[os.path.relpath(path, place)] = os.readlink(path)
        elif path.is_file():
            found[os.path.relpath(path, place)] = path.read_bytes()
    return found


def written(labels: Path, format: FormatName, output: Path, **settings: Any) -> tuple[Any, dict[str, bytes | str]]:
    summary = export(ExportRun(str(labels), format, str(output), ExportConfig(**settings)))
    facts = {name: value for name, value in vars(summary).items() if name != "files"}
    assert sorted(output.parent.iterdir()) == sorted(Path(file) for file in summary.files)  # nothing else is left
    return facts, contents(output)


RUNS = {
    "mixed": [random_record(seed) for seed in range(9)]
    + [failed_record()]
    + [random_record(seed) for seed in range(5)],
    "nothing first": [failed_record()] * 7 + [NOTHING] * 6 + [random_record(3), NOTHING],
    "nothing at all": [failed_record()] * 5 + [NOTHING] * 3,
    "all failed": [failed_record()] * 9,
}


@pytest.mark.parametrize("records", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("style", STYLES, ids=["all", "some"])
@pytest.mark.parametrize("format", FORMATS)
def test_tasks_write_what_one_process_writes(
    format: FormatName,
    style: dict[str, Any],
    records: list[ImageRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(tmp_path / "run", records, rows_per_file=2)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here = written(tmp_path / "run", format, tmp_path / "here" / "out", **style)
    monkeypatch.setattr(exporting, "readers_for", imitated_readers_for)
    monkeypatch.setattr(part, "_COPIED_BYTES", 7)  # lines and letters are cut anywhere
    assert written(tmp_path / "run", format, tmp_path / "there" / "out", **style) == here
    assert here[1]


def test_links_to_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{tmp_path}/pictures/{number % 2}/{number}.jpg" for number in range(7)]
    write_run(tmp_path / "run", [random_record(seed) for seed in range(7)], rows_per_file=1, names=names)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here = written(tmp_path / "run", "yolo", tmp_path / "here" / "out", link_images=True)
    monkeypatch.setattr(exporting, "readers_for", imitated_readers_for)
    there = written(tmp_path / "run", "yolo", tmp_path / "there" / "out", link_images=True)
    assert there == here
    assert there[1]["images/0/0.jpg"] == names[0]


@pytest.mark.parametrize("names", [["/p/1.jpg", "/p/2.jpg", "/p/3.jpg", "/p/4.jpg", "/p/1.png"], ["/p/1.jpg"] * 5])
def test_two_images_of_one_name_in_two_parts(names: list[str], tmp_path: Path, in_tasks: None) -> None:
    write_run(tmp_path / "run", [NOTHING] * 5, rows_per_file=1, names=names)
    with pytest.raises(StorageError, match=r"two images of the labels would be written as 'labels/1\.txt'"):
        export(ExportRun(str(tmp_path / "run"), "yolo", str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_torn_file_leaves_nothing(format: FormatName, tmp_path: Path, in_tasks: None) -> None:
    write_run(tmp_path / "run", [random_record(seed) for seed in range(10)], rows_per_file=1)
    torn = Path(label_files(str(tmp_path / "run"))[6])
    torn.write_bytes(torn.read_bytes()[:-9])
    with pytest.raises(StorageError, match=rf"{torn.name}: cannot be read as Parquet"):
        export(ExportRun(str(tmp_path / "run"), format, str(tmp_path / "out")))
    torn.unlink()
    assert export(ExportRun(str(tmp_path / "run"), format, str(tmp_path / "out"))).images == 9
    with pytest.raises(StorageError, match="exists already"):
        export(ExportRun(str(tmp_path / "run"), format, str(tmp_path / "out")))


def test_a_category_that_is_not_there(tmp_path: Path, in_tasks: None) -> None:
    write_run(tmp_path / "run", [random_record(seed) for seed in range(6)], rows_per_file=1)
    with pytest.raises(ConfigError, match=r"export\.categories: 'cat' is no category of the labels"):
        export(ExportRun(str(tmp_path / "run"), "coco", str(tmp_path / "out"), ExportConfig(categories=("cat",))))


def test_a_part_that_is_tried_again_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the loss of a machine: the first attempt has left files, one of them broken off."""
    names = [f"{tmp_path}/pictures/{number}.jpg" for number in range(6)]
    write_run(tmp_path / "run", [random_record(seed + 20) for seed in range(6)], rows_per_file=1, names=names)
    settings = ExportConfig(link_images=True)
    export(ExportRun(str(tmp_path / "run"), "yolo", str(tmp_path / "whole"), settings))
    export_part = part.export_part

    def twice(number: int, source: Any, shared: Any) -> Any:
        export_part(number, source, shared)
        file = min((path for path in Path(shared[1].files).rglob("*.txt") if path.stat().st_size), default=None)
        if file is not None and number == 2:  # the last part is written first: all files so far are its own
            file.write_bytes(file.read_bytes()[:9])
        return export_part(number, source, shared)

    monkeypatch.setattr(exporting, "readers_for", imitated_readers_for)
    monkeypatch.setattr("pickle.dumps", lambda value: value)
    monkeypatch.setattr("pickle.loads", lambda value: value)
    monkeypatch.setattr(exporting, "export_part", twice)
    export(ExportRun(str(tmp_path / "run"), "yolo", str(tmp_path / "again"), settings))
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


@pytest.mark.parametrize("format", ["coco_dataset", "yolo"])
def test_s3_in_and_out(format: FormatName, tmp_path: Path, s3_folder: str, in_tasks: None) -> None:
    records = [random_record(0), NOTHING, failed_record(), random_record(1), random_record(2)]
    write_run(tmp_path / "run", records, rows_per_file=1)
    s3_folder = f"{s3_folder}/{format}"
    for file in label_files(str(tmp_path / "run")):
        storage.write_bytes_atomically(f"{s3_folder}/run/labels/{Path(file).name}", Path(file).read_bytes())
    export(ExportRun(str(tmp_path / "run"), format, str(tmp_path / "out")))
    export(ExportRun(f"{s3_folder}/run", format, f"{s3_folder}/out"))
    there = {uri: storage.read_bytes(uri) for uri in storage.list_files(s3_folder) if "/run/" not in uri}
    root = f"{s3_folder}/out" if load_format(format).is_folder else s3_folder
    found = {os.path.relpath(uri, root): content for uri, content in there.items()}
    if not load_format(format).is_folder:
        found = {os.path.normpath(os.path.join("..", name)) if name != "out" else ".": found[name] for name in found}
    assert found == contents(tmp_path / "out")
    bucket, prefix = s3_folder.removeprefix("s3://").split("/", 1)
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]
    assert not [entry["Key"] for entry in listed if ".tmp" in entry["Key"]]


def test_what_s3_has_of_a_folder_is_cleared_away_after_an_error(tmp_path: Path, s3_folder: str, in_tasks: None) -> None:
    write_run(
        tmp_path / "run", [NOTHING] * 5, rows_per_file=1, names=["/p/1.jpg", *[f"/p/{n}.png" for n in (2, 3, 4, 1)]]
    )
    with pytest.raises(StorageError, match=r"two images of the labels would be written as 'labels/1\.txt'"):
        export(ExportRun(str(tmp_path / "run"), "yolo", f"{s3_folder}/twice/out"))
    assert not storage.exists(f"{s3_folder}/twice")


def test_pieces_are_told_apart_by_what_they_are() -> None:
    pieces: list[str | Once | Listed] = [
        Once("{"),
        Listed('{"a":1}'),
        Listed('{"a":2}'),
        Once("}["),
        Listed('{"b":1}', True),
        Once("]"),
        "x",
        "y",
    ]
    assert "".join(file_text(iter(pieces))) == '{\n{"a":1},\n{"a":2}}[\n{"id":1,"b":1}]xy'
    entries = JoinedList()
    assert [entries.separated(), entries.numbered('{"c":0}')] == ["\n", ',\n{"id":2,"c":0}']


@pytest.mark.alone
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, in_tasks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "_COPIED_BYTES", 1 << 12)
    records = [random_record(seed, most_objects=3) for seed in range(20)]
    write_run(tmp_path / "few", records, rows_per_file=4)
    write_run(tmp_path / "many", records * 20, rows_per_file=4)
    names = iter("abc")

    def write(run: str) -> None:
        export(ExportRun(str(tmp_path / run), "coco_dataset", str(tmp_path / next(names))))

    assert growth(lambda: write("few"), lambda: write("many")) < FREE_LISTS
    few, many = (open_labels(str(tmp_path / run), 0.0, ()) for run in ("few", "many"))
    assert growth(lambda: list(few.labelled()), lambda: list(many.labelled())) > FREE_LISTS  # all rows would be seen
