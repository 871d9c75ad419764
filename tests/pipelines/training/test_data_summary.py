import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.errors import ImageError
from pipelines.training.data_summary import check_images, summarize
from pipelines.training.run import train
from tests.pipelines.training.test_run import IMAGES, SIDE, small_run, write_data


def test_counts_of_a_small_data_set(tmp_path: Path) -> None:
    source = write_data(tmp_path)
    document = json.loads(Path(source.annotations).read_text())
    document["categories"].append({"id": 9, "name": "roof"})
    document["annotations"][0] |= {"area": 20 * 20, "category_id": 9}
    document["annotations"][1] |= {"area": 100 * 100}
    document["annotations"][2] |= {"iscrowd": 1}
    document["annotations"][3] |= {"bbox": [0, 0, 0, 0], "segmentation": []}
    document["annotations"][0] |= {"iscrowd": None}
    Path(source.annotations).write_text(json.dumps(document))
    summary = summarize(load_coco(source.annotations, require_masks=False, on_fault="drop"))
    assert (summary.images, summary.images_without_objects) == (IMAGES, 3)
    assert (summary.objects, summary.crowd_regions) == (4, 1)
    assert summary.objects_per_category == {"door": 3, "roof": 1}
    assert list(summary.objects_per_size.values()) == [3, 0, 1]  # 24 x 32 pixels are small too
    assert summary.object_sides == {"16 to 32": 3, "64 to 128": 1}
    assert summary.objects_per_image == (0, 1, 1)
    assert summary.image_sides == (SIDE, SIDE, SIDE)
    assert summary.dropped == 1
    assert summary.faults == {"annotations left out": 1, "mended boxes, areas, flags or sizes": 1}
    assert "annotation 4" in summary.first_dropped[0]
    assert "annotation 1" in summary.first_dropped[1]


def test_the_first_faulty_images_are_named_before_anything_starts(tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    images = Path(source.images)
    (images / "1.png").unlink()
    (images / "2.png").write_bytes(b"no picture")
    Image.new("RGB", (SIDE, SIDE + 1)).save(images / "3.png")
    run = small_run(tmp_path / "run", source)
    run = replace(run, data=replace(run.data, check_images=32))
    with pytest.raises(ImageError, match=rf"data\.train: 3 of {IMAGES} images looked at cannot be used") as caught:
        train(run)
    message = str(caught.value)
    assert "image 2 (" in message
    assert "1.png): no such file; image 3 (" in message
    assert (
        f"the file has {SIDE} x {SIDE + 1} pixels (width x height), the annotation file says {SIDE} x {SIDE}" in message
    )
    assert not (tmp_path / "run").exists()
    dataset = load_coco(source.annotations, require_masks=True)
    check_images("data.train", dataset, source.images, number=1, max_pixels=10_000)  # the first one is whole
