"""The folder of a labelling run: torn books, lost files, two starts at once, starts that are refused. Without Ray."""

import errno
import json
import multiprocessing
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import StorageError, UserError
from maskrcnn_core.records.labels import record_schema, records_to_table
from pipelines import storage
from pipelines.images import manifest
from pipelines.images.manifest import Manifest, build_manifest, open_manifest
from pipelines.images.source import open_source
from pipelines.labelling import run as labelling
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.worker import LabelWorker
from pipelines.labels.chunks import write_labels
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import check_label_files, verify
from tests.fuzz.labelling_here import label_here
from tests.generated_labels import CATEGORIES, MODEL, random_record
from tests.pipelines.fake_detector import FAKE, write_images

IMAGES = 7


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ and a finished run out/ of four files."""
    folder = tmp_path_factory.mktemp("finished")
    write_images(folder / "images", IMAGES)
    label_here(folder / "images", folder / "out")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose images lie where they were."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out"


def rows_of(run: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(path) for path in sorted((run / "labels").iterdir())]).to_pylist()


def offences(run: Path) -> dict[str, int]:
    return dict(verify(VerifyRun(str(run))).findings.counts)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- contents --------------------------------------------------------------------------------------------------------


def test_a_fresh_run_is_verified_with_every_file_proved(run: Path) -> None:
    summary = verify(VerifyRun(str(run)))
    assert summary.passed
    assert (summary.rows, summary.files, summary.unsealed) == (IMAGES, 4, 0)


def test_no_flipped_bit_is_called_whole(tmp_path: Path) -> None:
    records = [random_record(seed) for seed in range(4)]
    path = tmp_path / "f.parquet"
    write_labels(records_to_table(list(range(4)), list("abcd"), records, MODEL, record_schema(CATEGORIES)), str(path))
    content = path.read_bytes()
    assert not check_label_files([str(path)], [0], MODEL, 1)[0].findings.counts
    dice = random.Random(1)
    # The name of the digest, the footer and the ends among them, where only one place tells.
    name = content.rfind(b"maskrcnn.sha256")
    places = [*range(name - 2, name + 90), *range(4), *range(len(content) - 12, len(content))]
    places += [dice.randrange(len(content)) for _ in range(150)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        assert check_label_files([str(path)], [0], MODEL, 1)[0].findings.counts, place


def test_a_file_of_the_same_chunk_from_another_run_is_noticed(run: Path) -> None:
    path = sorted((run / "labels").iterdir())[0]
    table = pq.read_table(path)
    changed = table.set_column(table.column_names.index("width"), "width", pa.array([99] * len(table), pa.int32()))
    write_labels(changed.cast(table.schema), str(path))
    assert offences(run).keys() >= {"content"}


FOREIGN: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a column twice": lambda t: t.append_column("model", t.column("model")),
    "a null model": lambda t: t.set_column(7, pa.field("model", pa.string()), [pa.nulls(len(t), pa.string())]),
    "categories of another shape": lambda t: t.replace_schema_metadata(
        {**t.schema.metadata, b"maskrcnn.categories": b"[1, {}]"}
    ),
    "categories that are no JSON": lambda t: t.replace_schema_metadata(
        {**t.schema.metadata, b"maskrcnn.categories": b"{"}
    ),
    "a version that is no text": lambda t: t.replace_schema_metadata(
        {**t.schema.metadata, b"maskrcnn.schema_version": b"\xff"}
    ),
    "an image id that is null": lambda t: t.set_column(
        0, pa.field("image_id", pa.int64()), [pa.nulls(len(t), pa.int64())]
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_rows_are_offences(run: Path, name: str) -> None:
    path = sorted((run / "labels").iterdir())[1]
    pq.write_table(FOREIGN[name](pq.read_table(path)), path)
    found = verify(VerifyRun(str(run))).findings
    assert found.counts
    assert any(offence.file.endswith(path.name) for offence in found.first)


# ---- torn books ------------------------------------------------------------------------------------------------------

BOOKS = ["run.json", "_SUCCESS", "chunks.json", "files.parquet", "manifest/manifest.json", "manifest/part"]
TEARS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "a list": lambda _: b"[]",
    "an object": lambda _: b"{}",
    "null": lambda _: b"null",
    "zeros": lambda content: bytes(len(content)),
    "other types": lambda _: (
        b'{"rows": "4", "parts": 4, "model": 1, "settings": [], "statuses": 1, "detections": null}'
    ),
    "no rows": lambda _: b'{"rows": 0, "parts": [0], "digest": "", "images": "", "kind": "", "stamp": ""}',
    "deep": lambda _: b"[" * 100_000,
    "a bit": lambda content: bytes([*content[:40], content[40] ^ 1, *content[41:]]),
}


def book(run: Path, name: str) -> Path:
    return next((run / "_run" / name).parent.glob(f"{Path(name).name}*"))


@pytest.mark.parametrize("tear", TEARS)
@pytest.mark.parametrize("name", BOOKS)
def test_torn_books_are_named(finished: Path, run: Path, name: str, tear: str) -> None:
    path = book(run, name)
    path.write_bytes(TEARS[tear](path.read_bytes()))
    before = rows_of(run)
    passed, said = verdict(run)
    assert not passed
    assert path.name in said
    try:
        assert label_here(finished / "images", run).images == IMAGES
    except StorageError as error:
        said = str(error)
        is_clear = path.name in said and "elete" in said and "\n" not in said
        assert is_clear, said
    assert rows_of(run) == before


def verdict(run: Path) -> tuple[bool, str]:
    """Whether jobs.verify passes a run, and what it says."""
    try:
        summary = verify(VerifyRun(str(run)))
    except StorageError as error:  # its images cannot be counted
        return False, str(error)
    return summary.passed, str(summary.findings)


@pytest.mark.parametrize("name", ["_SUCCESS", "manifest/manifest.json"])
def test_what_the_message_advises_mends_the_run(finished: Path, run: Path, name: str) -> None:
    path = book(run, name)
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="delete"):
        label_here(finished / "images", run)
    path.unlink()
    assert label_here(finished / "images", run).images == IMAGES
    assert offences(run) == {}


def test_a_list_of_other_images_is_not_taken_for_that_of_the_labels(finished: Path, run: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(finished / "images", images)
    label_here(images, tmp_path / "own")
    book(tmp_path / "own", "manifest/manifest.json").unlink()
    sorted(images.iterdir())[0].unlink()
    with pytest.raises(StorageError, match="are others than those that its labels are of"):
        label_here(images, tmp_path / "own")


# ---- lost files ------------------------------------------------------------------------------------------------------


def lose_one(run: Path) -> None:
    sorted((run / "labels").iterdir())[1].unlink()


def lose_all(run: Path) -> None:
    shutil.rmtree(run / "labels")


def tear_one(run: Path) -> None:
    path = sorted((run / "labels").iterdir())[2]
    path.write_bytes(path.read_bytes()[:-100])


def empty_one(run: Path) -> None:
    sorted((run / "labels").iterdir())[0].write_bytes(b"")


@pytest.mark.parametrize("lose", [lose_one, lose_all, tear_one, empty_one])
def test_what_a_finished_run_has_lost_is_labelled_again(
    finished: Path, run: Path, lose: Callable[[Path], None]
) -> None:
    before = files_below(run / "labels")
    lose(run)
    summary = label_here(finished / "images", run)
    assert not summary.skipped_because_done
    assert 0 < summary.labelled_now <= IMAGES
    assert files_below(run / "labels") == before
    assert offences(run) == {}
    assert label_here(finished / "images", run).skipped_because_done


def test_a_whole_file_of_another_size_is_not_overwritten(finished: Path, run: Path) -> None:
    path = sorted((run / "labels").iterdir())[0]
    pq.write_table(pq.read_table(path), path, compression="none")
    changed = path.read_bytes()
    with pytest.raises(StorageError, match="when the run was finished"):
        label_here(finished / "images", run)
    assert path.read_bytes() == changed


def test_a_run_of_an_earlier_release_is_finished_and_said_to_be_without_proof(finished: Path, run: Path) -> None:
    (run / "_run" / "files.parquet").unlink()
    for path in (run / "labels").iterdir():
        table = pq.read_table(path)
        kept = {name: value for name, value in table.schema.metadata.items() if name != b"maskrcnn.sealed"}
        pq.write_table(table.replace_schema_metadata(kept), path)
    for name in ("run.json", "_SUCCESS", "chunks.json"):
        content = json.loads(book(run, name).read_text())
        content.pop("sha256")
        content.pop("manifest", None)
        book(run, name).write_text(json.dumps(content))
    assert label_here(finished / "images", run).skipped_because_done
    summary = verify(VerifyRun(str(run)))
    assert (summary.passed, summary.unsealed) == (True, 4)


# ---- two starts ------------------------------------------------------------------------------------------------------


def test_two_starts_that_list_in_turn_share_one_manifest(finished: Path, tmp_path: Path) -> None:
    """The second one's whole work falls into each step of the first."""
    folder = str(tmp_path / "manifest")

    for step in range(4):
        shutil.rmtree(folder, ignore_errors=True)
        others: list[Manifest] = []
        calls = 0

        def tasks(function: Any, arguments: Any, step: int = step, others: list[Manifest] = others) -> Iterator[Any]:
            nonlocal calls
            for some in arguments:
                calls += 1
                if calls == step + 1:
                    others.append(build_manifest(open_source(str(finished / "images")), folder))
                yield function(*some)

        ours = build_manifest(open_source(str(finished / "images")), folder, tasks)
        if others:
            assert ours == others[0] == open_manifest(folder)
        assert len(list(Path(folder).iterdir())) == 1 + len(ours.parts)  # nothing of the loser is left
        assert pa.concat_tables(ours.tables()).num_rows == IMAGES


def _build(images: str, folder: str, barrier: Any, results: Any) -> None:
    try:
        barrier.wait(30)
        results.put(build_manifest(open_source(images), folder).attempt)
    except Exception as error:
        results.put(repr(error))


def test_processes_that_list_at_once_make_one_manifest(finished: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_number in range(10):
        barrier, results = context.Barrier(3), context.Queue()
        folder = str(tmp_path / str(round_number))
        arguments = (str(finished / "images"), folder, barrier, results)
        processes = [context.Process(target=_build, args=arguments) for _ in range(3)]
        for process in processes:
            process.start()
        found = {results.get(timeout=60) for _ in processes}
        for process in processes:
            process.join()
        published = open_manifest(folder)
        assert published is not None
        assert found == {published.attempt}
        assert len(published) == pa.concat_tables(published.tables()).num_rows == IMAGES


def test_a_second_start_that_fails_leaves_the_first_ones_work(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    draft = manifest.draft_manifest

    def fail_after_the_first(*arguments: Any) -> Manifest:
        with pytest.MonkeyPatch.context() as first:
            first.setattr(labelling, "draft_manifest", draft)
            label_here(finished / "images", output)
        raise StorageError("pieces/000000-0000.parquet: no such file")

    monkeypatch.setattr(labelling, "draft_manifest", fail_after_the_first)
    with pytest.raises(StorageError, match="no such file"):
        label_here(finished / "images", output)
    assert offences(output) == {}


def test_of_two_different_runs_the_second_is_told(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find a new folder; the other one has claimed it when this one has listed its images."""
    output, others = tmp_path / "out", tmp_path / "others"
    write_images(others, 3)
    draft = manifest.draft_manifest

    def late(*arguments: Any) -> Manifest:
        made = draft(*arguments)
        with pytest.MonkeyPatch.context() as first:
            first.setattr(labelling, "draft_manifest", draft)
            label_here(finished / "images", output)
        return made

    monkeypatch.setattr(labelling, "draft_manifest", late)
    with pytest.raises(StorageError, match="holds another run"):
        label_here(others, output)
    assert offences(output) == {}
    assert len(rows_of(output)) == IMAGES


# ---- refused starts --------------------------------------------------------------------------------------------------


def refuse(images: Path, output: Path, **settings: Any) -> str:
    """The message of a start that is refused."""
    from tests.fuzz import labelling_here

    run = LabelRun("checkpoint", str(images), str(output), label=LabelConfig(**settings))
    with labelling_here._without_cluster(), pytest.raises(UserError) as caught:
        labelling.label(run, detector=FAKE)
    return str(caught.value)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_refused_start_leaves_a_new_folder_as_it_was(finished: Path, tmp_path: Path, is_there: bool) -> None:
    output = tmp_path / "out"
    if is_there:
        output.mkdir()
    assert "need" in refuse(finished / "images", output, num_workers=50)
    assert "GPU" in refuse(finished / "images", output, use_gpu=True)
    (tmp_path / "nothing").mkdir()
    assert "no images" in refuse(tmp_path / "nothing", output)
    assert output.exists() == is_there
    assert not is_there or not list(output.iterdir())
    assert label_here(finished / "images", output).images == IMAGES


def test_the_folder_of_a_training_run_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    assert "training run" in refuse(finished / "images", tmp_path / "out")
    (tmp_path / "out" / "checkpoints").rmdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    assert "training run" in refuse(finished / "images", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_images_that_have_moved_are_one_clear_line(finished: Path, tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    shutil.copytree(finished / "images", images)
    label_here(images, output)
    images.rename(tmp_path / "moved")
    assert "make them available at the former place" in refuse(tmp_path / "moved", output)
    assert f"{str(images)!r} is no longer there" in refuse(images, output)


def test_a_file_that_is_there_is_not_created_again(tmp_path: Path, s3_folder: str) -> None:
    for place in (str(tmp_path / "deep" / "er" / "a"), storage.join(s3_folder, "created")):
        assert storage.create_bytes(place, b"first")
        assert not storage.create_bytes(place, b"second")
        assert storage.read_bytes(place) == b"first"
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a"]


def test_a_manifest_of_an_earlier_release_is_read(finished: Path, tmp_path: Path) -> None:
    built = build_manifest(open_source(str(finished / "images")), str(tmp_path))
    Path(built.part_uri(0)).rename(tmp_path / "part-00000.parquet")
    content = json.loads((tmp_path / "manifest.json").read_text())
    for name in ("attempt", "image_root", "sha256"):
        content.pop(name)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    found = open_manifest(str(tmp_path))
    assert found is not None
    assert found.read(0).num_rows == IMAGES
    assert manifest.changes_since(found, str(finished / "images")) is None


def test_a_folder_that_is_deleted_meanwhile_is_not_made_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, label_table = tmp_path / "out", LabelWorker.label

    def label(self: LabelWorker, rows: pa.Table) -> pa.Table:
        table = label_table(self, rows)
        shutil.rmtree(output)
        return table

    monkeypatch.setattr(LabelWorker, "label", label)
    assert "was deleted or moved while it was labelled" in refuse(finished / "images", output, rows_per_file=2)
    assert not output.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*_: Any) -> None:
        raise OSError(code, "full")

    monkeypatch.setattr("pipelines.storage.files._write_new", full)
    for write in (storage.write_bytes_atomically, storage.create_bytes):
        with pytest.raises(StorageError, match="No space left on device; make room"):
            write(str(tmp_path / "a"), b"x")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for write in (storage.write_bytes_atomically, storage.create_bytes):
        with pytest.raises(StorageError, match="cannot be written: Not a directory"):
            write(str(tmp_path / "file" / "deeper" / "a"), b"x")
