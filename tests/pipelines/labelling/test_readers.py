"""How many images a worker reads at once."""

from dataclasses import replace
from pathlib import Path

import pytest

from maskrcnn_core.errors import ConfigError
from pipelines.images.manifest import Manifest, build_manifest
from pipelines.images.source import open_source
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.run import _fitting_readers


def manifest_of(tmp_path: Path, *uris: str) -> Manifest:
    (tmp_path / "list.csv").write_text("\n".join(["uri", *uris]))
    return build_manifest(open_source(f"{tmp_path}/list.csv"), f"{tmp_path}/manifest")


@pytest.mark.parametrize(
    ("uris", "readers"),
    [
        (["a.jpg"], 16),
        (["/data/a.jpg", "file:///data/b.jpg"], 16),
        (["http://host/a.jpg"], 16),
        (["s3://bucket/a.jpg"], 64),
        (["/data/a.jpg", "gs://bucket/a.jpg"], 64),
        (["az://container/a.jpg", *(f"/data/{number}.jpg" for number in range(60))], 64),
    ],
)
def test_readers_follow_from_where_a_table_says_that_images_lie(tmp_path: Path, uris: list[str], readers: int) -> None:
    assert _fitting_readers(manifest_of(tmp_path, *uris)) == readers


@pytest.mark.parametrize(
    ("kind", "images", "readers"),
    [
        ("folder", "/data", 16),
        ("glob", "s3://bucket/*.jpg", 64),
        ("folder", "gs://bucket", 64),
        ("inventory", "s3://b/m.json", 64),
    ],
)
def test_readers_follow_from_the_source(tmp_path: Path, kind: str, images: str, readers: int) -> None:
    manifest = replace(manifest_of(tmp_path, "s3://a/b.jpg", "/a.jpg"), kind=kind, images=images, folder="/none")
    assert _fitting_readers(manifest) == readers  # of which nothing has to be read


@pytest.mark.parametrize("readers", [-1, 1025])
def test_a_number_of_readers_within_bounds(readers: int) -> None:
    with pytest.raises(ConfigError, match=r"label\.readers"):
        LabelConfig(readers=readers)
