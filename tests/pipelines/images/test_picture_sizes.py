"""Training takes sizes that its annotation file lacks from the pictures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import AnnotationError
from pipelines.images.picture_sizes import picture_sizes
from pipelines.training.config import TrainRun
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.datasets import training_data, validation_data
from tests.pipelines.evaluation.annotation_cases import HEIGHT, IMAGES, WIDTH, plain, write_pictures


def run_on(folder: Path, document: dict[str, Any]) -> TrainRun:
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(document))
    if not (folder / "images").exists():
        write_pictures(folder / "images")
    source = DatasetConfig(str(folder / "images"), str(annotations))
    return TrainRun(str(folder / "run"), model=ModelConfig(), data=DataConfig(train=source, val=source))


@pytest.mark.parametrize("value", [None, 0, -1, "wide", 10**9])
def test_a_size_that_cannot_be_is_the_pictures(tmp_path: Path, value: Any) -> None:
    document = plain()
    document["images"][1]["width"] = value
    del document["images"][2]["height"]
    found = training_data(run_on(tmp_path, document))
    assert [(image.width, image.height) for image in found.dataset.images] == [(WIDTH, HEIGHT)] * IMAGES
    assert [len(image.objects) for image in found.dataset.images] == [2] * IMAGES
    (note,) = found.notes
    assert "2 boxes, areas, flags or sizes are mended" in note
    assert f"; {WIDTH} x {HEIGHT} from the picture" in note


def test_so_is_that_of_every_image_and_in_validation(tmp_path: Path) -> None:
    document = plain()
    for image in document["images"]:
        del image["width"], image["height"]
    run = run_on(tmp_path, document)
    data = training_data(run)
    learnt = replace(run, model=replace(run.model, categories=data.dataset.categories))
    for found in (data, validation_data(learnt)):
        assert [(image.width, image.height) for image in found.dataset.images] == [(WIDTH, HEIGHT)] * IMAGES


def test_without_the_picture_the_image_is_left_out(tmp_path: Path) -> None:
    document = plain()
    del document["images"][0]["width"], document["images"][3]["width"]
    run = run_on(tmp_path, document)
    (tmp_path / "images" / "im1.png").unlink()
    (tmp_path / "images" / "im4.png").write_bytes(b"no picture")
    found = training_data(run)
    assert [image.image_id for image in found.dataset.images] == [2, 3]
    assert any("2 images are left out with their annotations" in note for note in found.notes)


def test_none_that_can_be_read_is_refused(tmp_path: Path) -> None:
    document = plain()
    for image in document["images"]:
        image |= {"width": None, "file_name": "gone.png"}
    with pytest.raises(AnnotationError, match="expected whole numbers above 0"):
        training_data(run_on(tmp_path, document))


def test_a_size_that_is_said_is_not_looked_up(tmp_path: Path) -> None:
    found = training_data(run_on(tmp_path, plain()))
    assert found.notes == ()
    (tmp_path / "images" / "im1.png").unlink()
    assert training_data(run_on(tmp_path, plain())).notes == ()


def test_sizes_are_as_stored_and_names_may_begin_with_a_split(tmp_path: Path) -> None:
    folder = tmp_path / "train2017"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=exif)
    size_of = picture_sizes(str(folder))
    assert size_of("turned.jpg", False) == (30, 20)
    assert size_of("train2017/turned.jpg", True) == (30, 20)
    assert size_of("train2017/turned.jpg", False) is None  # another file's name
    assert size_of("gone.jpg", False) is None
    assert size_of("\x00", True) is None
