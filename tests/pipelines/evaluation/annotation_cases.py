"""A small COCO file as exporters write it, with one quirk at a time, and what has to become of each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table

WIDTH, HEIGHT, IMAGES = 96, 64, 4
CATEGORIES = (Category(1, "red"), Category(2, "blue"))
Document = dict[str, Any]


def plain() -> Document:
    """Four images, each with a red and a blue rectangle of 30 x 24 pixels."""
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, IMAGES + 1):
        for category_id, left in ((1, 4), (2, 44)):
            x, y = left + image_id, 6 + image_id
            corners = [float(v) for v in (x, y, x + 30, y, x + 30, y + 24, x, y + 24)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x, y, 30, 24],
                    "area": 720,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
    images = [{"id": i, "file_name": f"im{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, IMAGES + 1)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": one.id, "name": one.name, "supercategory": "s"} for one in CATEGORIES],
    }


def write_pictures(folder: Path) -> None:
    """The pictures of `plain`."""
    folder.mkdir(parents=True)
    document = plain()
    for image in document["images"]:
        pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        for one in document["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, w, h = one["bbox"]
                pixels[y : y + h, x : x + w] = (200, 30, 30) if one["category_id"] == 1 else (30, 30, 200)
        Image.fromarray(pixels).save(folder / image["file_name"])


def perfect_records() -> list[ImageRecord]:
    """What a perfect detector finds in the pictures."""
    document = plain()
    records = []
    for image in document["images"]:
        found = []
        for one in document["annotations"]:
            if one["image_id"] == image["id"]:
                mask = np.asfortranarray(rasterise(one["segmentation"], HEIGHT, WIDTH).astype(np.uint8))
                counts = coco_mask.encode(mask)["counts"].decode()
                x, y, width, height = map(float, one["bbox"])
                name, score = CATEGORIES[one["category_id"] - 1].name, 0.9 - 0.01 * one["id"]
                found.append(DetectionRecord(one["category_id"], name, score, (x, y, width, height), counts))
        records.append(ImageRecord("ok", None, WIDTH, HEIGHT, tuple(found)))
    return records


def perfect_labels(images: Path) -> pa.Table:
    """The same as label rows."""
    uris = [str(images / f"im{i}.png") for i in range(1, IMAGES + 1)]
    return records_to_table(range(1, IMAGES + 1), uris, perfect_records(), "model", record_schema(CATEGORIES))


@dataclass(frozen=True)
class Case:
    """One quirk.

    Attributes:
        name: of the case.
        change: makes it out of `plain`, in place.
        refused: what training says where the file is refused; empty = it is read.
        unscored: what scoring says where it is refused; None = as training.
        unlabelled: the same for the list of images; None = read.
        faults: counted where masks are learnt, by kind.
        bbox, segm: AP of a perfect detector; None = another number than 1, the same by both engines; -1 = not scored.
    """

    name: str
    change: Callable[[Document], Any]
    refused: str = ""
    unscored: str | None = None
    unlabelled: str | None = None
    faults: dict[str, int] = field(default_factory=dict)
    bbox: float | None = 1.0
    segm: float | None = 1.0


def first(**changes: Any) -> Callable[[Document], Any]:
    """Changes to the first annotation."""
    return lambda document: document["annotations"][0].update(copy.deepcopy(changes))


def each(**changes: Any) -> Callable[[Document], Any]:
    """Changes to every annotation."""
    return lambda document: [one.update(copy.deepcopy(changes)) for one in document["annotations"]]


def without(*names: str, all_of_them: bool = True) -> Callable[[Document], Any]:
    """Every annotation, or the first, lacks some fields."""

    def change(document: Document) -> None:
        for one in document["annotations"] if all_of_them else document["annotations"][:1]:
            for name in names:
                del one[name]

    return change


def of_images(**changes: Any) -> Callable[[Document], Any]:
    """Changes to every image; a function gets the image."""

    def change(document: Document) -> None:
        for image in document["images"]:
            image.update({key: value(image) if callable(value) else value for key, value in changes.items()})

    return change


def _with_ids(convert: Callable[[int], Any], section: str, reference: str) -> Callable[[Document], Any]:
    def change(document: Document) -> None:
        for one in document[section]:
            one["id"] = convert(one["id"])
        for one in document["annotations"]:
            one[reference] = convert(one[reference])

    return change


def _lvis(document: Document) -> None:
    for image in document["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for category in document["categories"]:
        category["frequency"] = "f"


def _split_masks(document: Document) -> None:
    for place in (0, 3):
        del document["annotations"][place]["segmentation"]


def _panoptic(document: Document) -> None:
    document["annotations"] = [
        {"image_id": image["id"], "file_name": image["file_name"], "segments_info": [{"id": 1, "category_id": 1}]}
        for image in document["images"]
    ]


def _sections(**changes: Any) -> Callable[[Document], Any]:
    def change(document: Document) -> None:
        for name, value in changes.items():
            if value is None:
                del document[name]
            else:
                document[name] = value

    return change


_BOX = [5.0, 7.0, 35.0, 7.0, 35.0, 31.0, 5.0, 31.0]
_COUNTS = [5 * 64 + 7, *([24, 40] * 29), 24, 96 * 64 - (34 * 64 + 31)]
_CANVAS = [5 * 96 + 7, *([24, 72] * 29), 24, 96 * 64 - (34 * 96 + 31)]  # drawn on 96 x 64 pixels, height x width
_POINTS = {"keypoints": [5.0, 5.0, 2, 5.0, 5.0, 2, 5.0, 5.0, 2], "num_keypoints": 3}
_NO_ID = "annotation at position 0: id None, expected a whole number"
_SIZES = "no image can be used: image 1: width"

CASES = (
    Case("plain", lambda document: None),
    Case("anns_first", lambda d: d.update({"annotations": d.pop("annotations"), "images": d.pop("images")})),
    Case("cat_no_super", lambda d: [one.pop("supercategory") for one in d["categories"]]),
    Case("cat_roboflow", lambda d: d["categories"].insert(0, {"id": 0, "name": "shapes"})),
    Case("cat_id_zero", _with_ids(lambda one: one - 1, "categories", "category_id"), bbox=None, segm=None),
    Case("cat_same_name", lambda d: [one.update(name="cell") for one in d["categories"]], bbox=None, segm=None),
    Case("iscrowd_missing", without("iscrowd")),
    Case("iscrowd_false", each(iscrowd=False)),
    Case("iscrowd_null", each(iscrowd=None), faults={"field": 8}),
    Case("one_iscrowd_null", first(iscrowd=None), faults={"field": 1}),
    Case("iscrowd_text", first(iscrowd="0"), faults={"field": 1}),
    Case("iscrowd_strange", first(iscrowd={"a": 1}), faults={"field": 1}),
    Case("area_missing", without("area")),
    Case("area_null", each(area=None), faults={"field": 8}),
    Case("one_area_null", first(area=None), faults={"field": 1}),
    Case("area_zero", each(area=0)),
    Case("area_text", first(area="720"), faults={"field": 1}),
    Case("area_nan", first(area=float("nan")), faults={"field": 1}),
    Case("bbox_missing", without("bbox", all_of_them=False)),
    Case("bbox_zeros_with_polygon", each(bbox=[0, 0, 0, 0]), faults={"field": 8}),
    Case("bbox_empty", first(bbox=[]), faults={"field": 1}),
    Case("bbox_null", first(bbox=None), faults={"field": 1}),
    Case("bbox_inverted", first(bbox=[35, 31, -30, -24]), faults={"field": 1}),
    Case("bbox_zero_width", first(bbox=[5, 7, 0, 24]), faults={"field": 1}),
    Case("bbox_strings", first(bbox=["5", "7", "30", "24"]), faults={"field": 1}),
    Case("bbox_nan", first(bbox=[5, float("nan"), 30, 24]), faults={"field": 1}),
    Case("bbox_far", first(bbox=[5, 7, 1e300, 24]), faults={"field": 1}, bbox=None),
    Case("bbox_beyond", first(bbox=[-5, -5, 200, 200]), bbox=None),
    Case("bbox_outside", first(bbox=[500, 7, 30, 24]), faults={"field": 1}),
    Case("no_box_no_mask", first(bbox=[0, 0, 0, 0], segmentation=[]), faults={"object": 1}, bbox=None, segm=None),
    Case("seg_extra_point", first(segmentation=[_BOX, [10.0, 10.0]]), faults={"mask": 1}),
    Case("seg_extra_line", first(segmentation=[_BOX, [10.0, 10.0, 12.0, 12.0]]), faults={"mask": 1}),
    Case("seg_first_line", first(segmentation=[[10.0, 10.0, 12.0, 12.0], _BOX]), faults={"mask": 1}),
    Case("seg_odd", first(segmentation=[_BOX, _BOX[:7]]), faults={"mask": 1}),
    Case("seg_empty_list", first(segmentation=[]), faults={"no mask": 1}),
    Case("seg_list_of_empty", first(segmentation=[[]]), faults={"no mask": 1}),
    Case("seg_4_numbers", first(segmentation=[[4.0, 6.0, 34.0, 30.0]]), faults={"no mask": 1}),
    Case("seg_flat_polygon", first(segmentation=_BOX), faults={"mask": 1}),
    Case("seg_list_of_points", first(segmentation=[[5, 7], [35, 7], [35, 31], [5, 31]]), faults={"mask": 1}),
    Case("seg_nan", first(segmentation=[[float("nan"), *_BOX[1:]]]), faults={"no mask": 1}),
    Case("seg_infinite", first(segmentation=[[float("inf"), *_BOX[1:]]]), faults={"no mask": 1}),
    Case("seg_text", first(segmentation=[["a", *_BOX[1:]]]), faults={"no mask": 1}),
    Case("seg_null_inside", first(segmentation=[None, _BOX]), faults={"mask": 1}),
    Case("seg_huge_int", first(segmentation=[[10**400, *_BOX[1:]]]), faults={"no mask": 1}),
    Case("seg_rle_list", first(segmentation={"size": [64, 96], "counts": _COUNTS})),
    Case("seg_in_list_rle", first(segmentation=[{"size": [64, 96], "counts": _COUNTS}]), faults={"mask": 1}),
    Case("seg_rle_size_wh", first(segmentation={"size": [96, 64], "counts": _COUNTS}), faults={"mask": 1}),
    Case("seg_rle_canvas", first(segmentation={"size": [96, 64], "counts": _CANVAS}), faults={"no mask": 1}),
    Case("seg_rle_long", first(segmentation={"size": [64, 96], "counts": [0, 10**9]}), faults={"no mask": 1}),
    Case("seg_rle_negative", first(segmentation={"size": [64, 96], "counts": [-5, 6149]}), faults={"no mask": 1}),
    Case("seg_rle_torn", first(segmentation={"size": [64, 96], "counts": "W:h0X1000o"}), faults={"no mask": 1}),
    Case("seg_rle_odd_size", first(segmentation={"size": "64x96", "counts": "W"}), faults={"no mask": 1}),
    Case("boxes_some_no_masks", _split_masks, faults={"no mask": 2}),
    Case("poly_beyond", first(segmentation=[[-20.0, -10.0, 180.0, -10.0, 180.0, 90.0, -20.0, 90.0]]), segm=None),
    Case("poly_outside", first(segmentation=[[200, 200, 220, 200, 220, 210, 200, 210]]), faults={"no mask": 1}),
    Case("far", first(segmentation=[[-2147483648.0, *_BOX[1:]]]), faults={"mask": 1}, segm=None),
    Case("far_1e7", first(segmentation=[[1e7, *_BOX[1:]]]), faults={"mask": 1}, segm=None),
    Case("far_1e300", first(segmentation=[[1e300, *_BOX[1:]]]), faults={"mask": 1}, segm=None),
    Case("kp_without_category", each(**_POINTS)),
    Case("one_kp_null", first(keypoints=[None, None, 0])),
    Case(
        "kp_two_lists",
        lambda d: [one.update(keypoints=names) for one, names in zip(d["categories"], ("abc", "xy"), strict=True)],
    ),
    Case("image_no_anns", lambda d: d["annotations"].__delitem__(slice(6, 8)), bbox=None, segm=None),
    Case("image_id_float", _with_ids(float, "images", "image_id")),
    Case("ids_float", each(category_id=1.0, id=None), refused=_NO_ID),
    Case("image_same_file_two_ids", lambda d: d["images"].append({**d["images"][0], "id": 50})),
    Case(
        "image_unknown_extra",
        lambda d: d["annotations"].append({**d["annotations"][0], "id": 99, "image_id": 777}),
        faults={"object": 1},
    ),
    Case("lvis_v1", _lvis),
    Case("ann_id_zero", lambda d: [one.update(id=one["id"] - 1) for one in d["annotations"]]),
    Case("ann_id_huge", lambda d: [one.update(id=2**62 - one["id"]) for one in d["annotations"]]),
    Case("ann_id_duplicate", lambda d: d["annotations"][1].update(id=1), refused="annotation 1: duplicate id"),
    Case("ann_id_all_same", each(id=5), refused="annotation 5: duplicate id"),
    Case("ann_id_string", lambda d: [one.update(id=str(one["id"])) for one in d["annotations"]], refused="id '1', exp"),
    Case("ann_id_missing", without("id"), refused=_NO_ID),
    Case("cat_id_string", _with_ids(str, "categories", "category_id"), refused="category at position 0: id '1'"),
    Case("cat_unknown", first(category_id=55), refused="annotation 1: category_id 55 is not in section 'categories'"),
    Case(
        "image_id_string",
        _with_ids(lambda one: f"frame_{one}", "images", "image_id"),
        refused="image at position 0: id 'frame_1', expected a whole number",
        unlabelled="id 'frame_1'",
    ),
    Case(
        "image_id_huge",
        _with_ids(lambda one: 2**64 + one, "images", "image_id"),
        refused="id 18446744073709551617, expected a whole number of 64 bits",
        unlabelled="id 18446744073709551617",
    ),
    Case(
        "image_listed_twice",
        lambda d: d["images"].append(d["images"][0]),
        refused="image 1: listed twice",
        unlabelled="image 1: listed twice",
    ),
    Case("no_categories", _sections(categories=None), refused="section 'categories'"),
    Case("no_annotations", _sections(annotations=None), refused="'annotations'"),
    Case("anns_none", _sections(annotations=[]), refused="no usable annotation", unscored="", bbox=-1.0, segm=-1.0),
    Case("panoptic", _panoptic, refused="this is a panoptic file, expected an instances file"),
    Case("size_missing", of_images(width=None, height=None), refused=_SIZES, unscored=""),
    Case("size_zero", of_images(width=0, height=0), refused=_SIZES, unscored=""),
    Case("size_huge", of_images(width=10**9), refused=_SIZES, unscored=""),
    Case("size_float", of_images(width=96.0)),
    Case("size_text", of_images(width="96")),
    Case("crowd_all", each(iscrowd=1), refused="there is nothing to learn", unscored="", bbox=-1.0, segm=-1.0),
    Case("seg_all_missing", without("segmentation"), refused="or has no mask", unscored="", segm=-1.0),
    Case("cat_name_missing", lambda d: d["categories"][0].pop("name"), segm=1.0),
    Case("cat_name_number", lambda d: d["categories"][0].update(name=7), bbox=None, segm=None),
    Case("cat_name_null", lambda d: d["categories"][0].update(name=None), refused="category 1: name None, expected"),
)
