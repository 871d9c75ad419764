import pyarrow as pa
import pytest

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.results import Coverage, coco_results, match_labels
from maskrcnn_core.records.labels import ImageRecord
from tests.core.evaluation.synthetic import HEIGHT, WIDTH, detection, found, label_table, rectangle_rle

IMAGES = {image_id: {"id": image_id, "width": WIDTH, "height": HEIGHT} for image_id in (1, 2, 3)}


def test_box_results_have_no_mask_and_mask_results_no_box() -> None:
    labels = label_table({5: found(), 6: found(detection(7, 0.5, [1, 2, 30, 40]), detection(2, 0.25, [0, 0, 4, 4]))})
    assert coco_results(labels, "bbox") == [
        {"image_id": 6, "category_id": 7, "score": 0.5, "bbox": [1, 2, 30, 40]},
        {"image_id": 6, "category_id": 2, "score": 0.25, "bbox": [0, 0, 4, 4]},
    ]
    assert coco_results(labels, "segm") == [
        {"image_id": 6, "category_id": 7, "score": 0.5, "segmentation": rectangle_rle(1, 2, 15, 40)},
        {"image_id": 6, "category_id": 2, "score": 0.25, "segmentation": rectangle_rle(0, 0, 2, 4)},
    ]


def test_rows_in_several_chunks_keep_their_images() -> None:
    rows = {number: found(*[detection(2, 0.5, [0, 0, 4, 4])] * number) for number in (3, 1, 2)}
    labels = label_table(rows)
    pieces = pa.concat_tables([labels.slice(0, 1), labels.slice(1, 0), labels.slice(1, 2)])
    assert [one["image_id"] for one in coco_results(pieces, "bbox")] == [3, 3, 3, 1, 2, 2]
    assert [one["image_id"] for one in coco_results(pieces.slice(1), "bbox")] == [1, 2, 2]


def test_no_rows_and_no_detections() -> None:
    for labels in (label_table({}), label_table({1: found()})):
        assert coco_results(labels, "bbox") == coco_results(labels, "segm") == []


def test_a_detection_without_mask_is_named() -> None:
    labels = label_table({8: found(detection(2, 0.5, [0, 0, 4, 4], masked=False))})
    with pytest.raises(AnnotationError, match="image 8: a detection has no segmentation"):
        coco_results(labels, "segm")


def test_rows_are_counted_by_what_became_of_them() -> None:
    failed = ImageRecord("unreadable", "damaged", None, None)
    rows, coverage = match_labels(label_table({9: found(), 2: failed, 1: found(), 10: failed}), IMAGES)
    assert rows.column("image_id").to_pylist() == [2, 1]
    assert coverage == Coverage(images=3, labelled=1, failed=1, unlabelled=1, unknown=2, without_labels=(2, 3))


@pytest.mark.parametrize("records", [{}, {7: found(), 8: found()}])
def test_labels_of_other_images_only(records: dict[int, ImageRecord]) -> None:
    with pytest.raises(AnnotationError, match=f"none of the {len(records)} label rows"):
        match_labels(label_table(records), IMAGES)


def test_two_rows_of_one_image() -> None:
    labels = label_table({1: found(), 2: found()})
    with pytest.raises(AnnotationError, match="image_id 2 has more than one label row"):
        match_labels(pa.concat_tables([labels, labels.slice(1)]), IMAGES)


def test_labels_of_a_turned_image() -> None:
    turned = ImageRecord("ok", None, HEIGHT, WIDTH)
    with pytest.raises(AnnotationError, match=r"image 1: labelled at 120 x 150 pixels, .* 150 x 120.*exif_orientation"):
        match_labels(label_table({1: turned}), IMAGES)
    assert match_labels(label_table({1: turned}), {1: {"id": 1}})[1].labelled == 1
