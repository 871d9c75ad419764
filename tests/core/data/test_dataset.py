"""From a folder of images and an annotation file to a padded batch."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import fs
from torch.utils.data import DataLoader

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.data.dataset import CocoTrainingData, Sample, collate, collate_proposals
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.proposals import ProposalFiles
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.errors import ImageError
from maskrcnn_core.records.proposals import ProposalRecord, proposals_to_table

SIZES = ((12, 16), (20, 10), (8, 8))
RULE = InputConfig(short_side=20, long_side=40, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images: a square in the first, two in the second, none in the third."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    square = [1, 1, 5, 1, 5, 5, 1, 5]
    annotations = [
        {"id": number, "image_id": image, "category_id": 7, "bbox": [1, 1, 4, 4], "segmentation": [square]}
        for number, image in enumerate((100, 101, 101))
    ]
    images = [
        {"id": 100 + number, "file_name": f"{number}.png", "height": height, "width": width}
        for number, (height, width) in enumerate(SIZES)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "square"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def data_of(folder: Path, images: str | None = None, **settings: Any) -> CocoTrainingData:
    return CocoTrainingData(
        load_coco(str(folder / "instances.json"), require_masks=True),
        Folder(images or str(folder)),
        RULE,
        TargetRule(mask_size=8),
        **settings,
    )


def test_items_become_a_batch(folder: Path) -> None:
    data = data_of(folder)
    assert len(data) == 3
    assert data.sizes.tolist() == [list(size) for size in SIZES]
    items = [data[Sample(index, flip=False, short_side=24)] for index in range(3)]
    packed, targets, image_ids = collate(items, RULE)
    batch = packed.to("cpu")
    assert image_ids == [100, 101, 102]
    assert batch.pixels.shape == (3, 3, 64, 32)
    assert batch.input_sizes.tolist() == [[24, 32], [40, 20], [24, 24]]
    assert batch.original_sizes.tolist() == [list(size) for size in SIZES]
    assert targets.valid.tolist() == [[True, False], [True, True], [False, False]]
    assert targets.boxes[:2, 0].tolist() == [[2, 2, 10, 10], [2, 2, 10, 10]]
    assert targets.masks is not None
    assert targets.masks.shape == (3, 2, 8, 8)
    stored = np.array(Image.open(folder / "2.png")).astype(np.float32)
    same_size = collate([data[Sample(2, flip=False, short_side=8)]], RULE)[0].to("cpu").pixels[0, :, :8, :8]
    np.testing.assert_allclose(same_size.permute(1, 2, 0), (stored / 255 - 0.5) / 0.25, atol=1e-5)


def test_a_mirrored_sample_is_the_mirror_image(folder: Path) -> None:
    data = data_of(folder)
    plain, mirrored = (data[Sample(0, flip=flip, short_side=24)] for flip in (False, True))
    torch.testing.assert_close(mirrored.image.pixels, plain.image.pixels.flip(-1), atol=1e-4, rtol=0)
    assert mirrored.targets.boxes.tolist() == [[32 - 10, 2, 32 - 2, 10]]


def test_uri_of_images_and_pickled_data(folder: Path) -> None:
    sample = Sample(1, flip=True, short_side=20)
    expected = data_of(folder)[sample]
    remote = data_of(folder, f"file://{folder}")
    for data in (remote, pickle.loads(pickle.dumps(remote))):
        assert torch.equal(data[sample].image.pixels, expected.image.pixels)


def test_torchs_loader_takes_it(folder: Path) -> None:
    batches = [[Sample(0, False, 16), Sample(1, True, 16)], [Sample(2, False, 8)]]
    together: Any = partial(collate, rule=RULE)
    loader: DataLoader[Any] = DataLoader(data_of(folder), batch_sampler=batches, collate_fn=together)  # type: ignore[arg-type]
    assert [image_ids for _, _, image_ids in loader] == [[100, 101], [102]]


def test_exif_does_not_turn_an_annotated_image(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "0.png").save(folder / "0.png", exif=exif)
    assert data_of(folder)[Sample(0, flip=False, short_side=12)].image.original_size == SIZES[0]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_missing_image_is_named(folder: Path, scheme: str) -> None:
    (folder / "1.png").unlink()
    with pytest.raises(ImageError, match=r"image 101 \(.*1\.png\): no such file") as caught:
        data_of(folder, f"{scheme}{folder}")[Sample(1, False, 8)]
    assert caught.value.status == "missing"


def test_a_damaged_image_is_named(folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    with pytest.raises(ImageError, match=r"image 101 \(.*1\.png\): damaged PNG") as caught:
        data_of(folder)[Sample(1, False, 8)]
    assert caught.value.status == "unreadable"


def test_another_size_than_annotated_is_an_error(folder: Path) -> None:
    Image.open(folder / "1.png").transpose(Image.Transpose.ROTATE_90).save(folder / "1.png")
    with pytest.raises(ImageError, match=r"image 101 .* 20 x 10 pixels .* says 10 x 20; were the annotations drawn"):
        data_of(folder)[Sample(1, False, 8)]


def test_real_images(shared_data: Path) -> None:
    dataset = load_coco(str(shared_data / "nuclei/annotations/instances_val.json"), require_masks=True)
    data = CocoTrainingData(
        dataset,
        Folder(str(shared_data / "nuclei/images")),
        InputConfig(short_side=256, long_side=512),
        TargetRule(mask_size=28),
    )
    batch, targets, _ = collate([data[Sample(index, index == 1, 256)] for index in range(2)], RULE)
    assert batch.values.numel() == 0  # they keep their size, and travel in 8 bits
    assert batch.to("cpu").pixels.shape[0] == 2
    assert targets.valid.sum() == sum(len(image.objects) for image in dataset.images[:2])
    inside = targets.boxes[targets.valid]
    assert (inside[:, 2:] > inside[:, :2]).all()


def proposals_of(folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES) -> ProposalFiles:
    """One proposal in the first image, two in the second, none in the third."""
    boxes: tuple[list[list[int]], ...] = ([[1, 1, 4, 4]], [[1, 1, 4, 4], [2, 0, 8, 20]], [])
    records = [
        ProposalRecord(
            "ok",
            None,
            width,
            height,
            np.array(rows, np.float32).reshape(-1, 4),
            np.linspace(1, 0, len(rows), dtype="f"),
        )
        for (height, width), rows in zip(sizes, boxes, strict=True)
    ]
    path = str(folder / "proposals.parquet")
    pq.write_table(proposals_to_table([100, 101, 102], ["x"] * 3, records, "model"), path)
    return ProposalFiles([path], fs.LocalFileSystem(), "data.train.proposals")


@pytest.mark.parametrize("flip", [False, True])
def test_proposals_move_with_their_objects(folder: Path, flip: bool) -> None:
    """The first proposal of an image is the very box of its object."""
    data = data_of(folder, proposals=proposals_of(folder))
    items = [pickle.loads(pickle.dumps(data))[Sample(index, flip, short_side=24)] for index in range(3)]
    proposals = collate_proposals(items)
    assert proposals is not None
    assert proposals.count.tolist() == [1, 2, 0]
    targets = collate(items, RULE)[1]
    torch.testing.assert_close(proposals.boxes[:2, 0], targets.boxes[:2, 0])
    x1, x2 = (0.0, 16.0) if flip else (4.0, 20.0)  # 2 to 10 of a width of 10, twice as large
    assert proposals.boxes[1, 1].tolist() == [x1, 0.0, x2, 40.0]
    assert proposals.boxes[2].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2  # fillers


def test_only_the_best_proposals_are_used(folder: Path) -> None:
    data = data_of(folder, proposals=proposals_of(folder), max_proposals=1)
    used = [data[Sample(index, False, 24)].proposals for index in range(3)]
    assert [0 if one is None else len(one) for one in used] == [1, 1, 0]


def test_without_proposals_there_are_none(folder: Path) -> None:
    assert collate_proposals([data_of(folder)[Sample(0, False, 24)]]) is None


def test_proposals_of_another_frame_are_an_error(folder: Path) -> None:
    data = data_of(folder, proposals=proposals_of(folder, ((16, 12), (20, 10), (8, 8))))
    message = (
        r"image 100: data\.train\.proposals: made at 12 x 16 pixels \(width x height\), the annotation file says 16"
    )
    with pytest.raises(ImageError, match=message):
        data[Sample(0, False, 24)]
