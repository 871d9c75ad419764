"""A whole labelling run, in this process, over names of every kind: a row for each, and all others labelled."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import ImageError
from pipelines import storage
from pipelines.images import reading
from pipelines.labelling import run as labelling
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.fuzz.labelling_here import _without_cluster
from tests.pipelines.fake_detector import FAKE, write_images

Rows = dict[str, tuple[str, str | None]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rows]]:
    """Label a source, make sure that the run is whole, and give status and error by uri."""
    monkeypatch.setattr("pipelines.images.reading_threads._LOOK_SECONDS", 0.02)

    def run(images: object, image_root: object = None, **settings: Any) -> Rows:
        output = str(tmp_path / "output")
        root = None if image_root is None else str(image_root)
        label = LabelConfig(rows_per_file=4, **settings)
        labelling.label(LabelRun("good", str(images), output, image_root=root, label=label), detector=FAKE)
        assert verify(VerifyRun(labels=output)).passed
        table = pa.concat_tables([pq.read_table(uri) for uri in storage.list_files(f"{output}/labels", ".parquet")])
        return {row["uri"]: (row["status"], row["error"]) for row in table.to_pylist()}

    with _without_cluster():
        yield run


def test_a_folder_with_every_kind_of_name(tmp_path: Path, run: Callable[..., Rows]) -> None:
    images = tmp_path / "set"
    write_images(images, 6)
    for name in (
        b"caf\xe9.png",
        b"new\nline.png",
        b"\x1b]0;title\x07.png",
        "ü%41+ #?&.png".encode(),
        b"x" * 250 + b".png",
    ):
        with open(os.fsencode(images) + b"/" + name, "wb") as stream:
            stream.write((images / "000.png").read_bytes())
    for link, target in {"up1": ".", "up2": ".", "loop.png": "loop.png", "zero.png": "/dev/zero"}.items():
        (images / link).symlink_to(target)
    os.mkfifo(images / "pipe.png")
    rows = run(images)
    assert len(rows) == 11
    assert {status for status, _ in rows.values()} == {"ok"}
    assert f"file://{images}/caf%E9.png" in rows


def test_a_table_with_what_is_no_file(tmp_path: Path, run: Callable[..., Rows]) -> None:
    write_images(tmp_path / "set", 3)
    os.mkfifo(tmp_path / "pipe.png")
    odd = ["a\0b.png", "pipe.png", "/dev/zero", "/proc/self/pagemap", str(tmp_path), "x" * 5000, "http://a/b.png"]
    good = [f"set/{k:03d}.png" for k in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["uri", good[0], *odd, *good[1:]]))
    rows = run(tmp_path / "list.csv")
    assert {uri for uri, (status, _) in rows.items() if status == "ok"} == {f"{tmp_path}/{name}" for name in good}
    assert len(rows) == 10
    assert {status for status, _ in rows.values()} == {"ok", "unreadable"}


def test_a_json_whose_names_leave_the_root(tmp_path: Path, run: Callable[..., Rows]) -> None:
    write_images(tmp_path / "set", 2)
    write_images(tmp_path / "else", 1)
    (tmp_path / "secret.png").write_bytes(b"root:x:0:0:root")
    names = ["000.png", f"{tmp_path}/set/001.png", f"{tmp_path}/else/000.png", "../secret.png", "/etc/passwd"]
    names += [(tmp_path / "else" / "000.png").as_uri(), "s3://bucket/a.png", "\ud800.png"]
    images = [{"id": k, "file_name": name} for k, name in enumerate(names, 1)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images}))
    rows = run(tmp_path / "set.json", tmp_path / "set")
    assert [status for _, (status, _) in sorted(rows.items())].count("ok") == 2
    assert sum("outside of image_root" in str(error) for _, error in rows.values()) == 5
    assert "root:x" not in str(rows)


def test_the_same_json_without_a_root_is_read_where_its_images_are(tmp_path: Path, run: Callable[..., Rows]) -> None:
    write_images(tmp_path / "set", 2)
    (tmp_path / "secret.png").write_bytes(b"root:x:0:0:root")
    names = [f"{tmp_path}/set/000.png", (tmp_path / "set" / "001.png").as_uri(), "secret.png"]
    images = [{"id": k, "file_name": name} for k, name in enumerate(names, 1)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images}))
    rows = run(tmp_path / "set.json")
    assert [rows[name if "/" in name else f"{tmp_path}/{name}"][0] for name in names] == ["ok", "ok", "unreadable"]
    assert "root:x" not in str(rows)


def test_a_reading_that_hangs_is_a_row(
    tmp_path: Path, run: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "set", 40)
    real, released = reading._read, threading.Event()

    def slow(uri: str, most: int) -> bytes:
        if uri.endswith(("003.png", "017.png", "018.png")):
            released.wait()
        return real(uri, most)

    monkeypatch.setattr(reading, "_read", slow)
    try:
        rows = run(tmp_path / "set", image_timeout=0.5)
    finally:
        released.set()
    late = {uri[-7:]: error for uri, (status, error) in rows.items() if status != "ok"}
    assert late == dict.fromkeys(
        ("003.png", "017.png", "018.png"), "reading took longer than 0.5 s (label.image_timeout)"
    )


def test_keys_of_s3_that_are_no_paths(s3_folder: str, tmp_path: Path, run: Callable[..., Rows]) -> None:
    write_images(tmp_path / "set", 1)
    client = boto3.client("s3")
    keys = ["a.png", "a//b.png", "/lead.png", "a/../up.png", "a/./dot.png", "IMG_0403.png"]
    for key in keys:
        client.put_object(Bucket="bucket", Key=f"names/{key}", Body=(tmp_path / "set" / "000.png").read_bytes())
    assert run("s3://bucket/names/") == {f"s3://bucket/names/{key}": ("ok", None) for key in keys}


def test_a_failure_can_be_told_to_a_terminal(tmp_path: Path, run: Callable[..., Rows]) -> None:
    (tmp_path / "list.csv").write_text('uri\n"a\n\x1b[2J.png"\nhttp://a/\x07.png\n"x\0.png"\n')
    for status, error in run(tmp_path / "list.csv").values():
        assert status in ("missing", "unreadable")
        assert str(error).isprintable()
    assert ImageError("missing", "x").status == "missing"
