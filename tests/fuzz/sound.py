"""The sound inputs that are damaged: made once, small, with one of everything that a file may hold."""

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.segmentation import rasterise
from tests.core.importers.caffe_networks import face_ssd, layer_message, piece
from tests.core.importers.synthetic_models import detectron2_state
from tests.core.weights.written_graph import constant
from tests.core.weights.written_graph import tensor as tensor_message
from tests.fuzz.labelling_here import label_here
from tests.generated_labels import failed_record, random_record, write_run
from tests.pipelines.fake_detector import write_images
from tests.small_detector import save_small_detector


@dataclass(frozen=True)
class SoundInputs:
    """Where they lie.

    Attributes:
        folder: of everything.
        annotations: COCO instances with polygons, run lengths of every spelling, a crowd and keypoints.
        images: folder of its pictures.
        shards: the same annotations as a folder of Parquet shards.
        results: COCO results for it, as a list.
        labels: output of a labelling run with 12 rows in three files, made up.
        truth: annotations that fit `labels`.
        labelled: rows of a run that `labelled` in the folder holds, of six images in `pictures` there.
        pictures: encoded images by format.
        checkpoint: folder of a small detector.
        foreign: files of other frameworks' weights, in a folder of their own.
    """

    folder: Path
    annotations: dict[str, Any]
    images: Path
    shards: Path
    results: list[dict[str, Any]]
    labels: Path
    truth: Path
    labelled: pa.Table
    pictures: dict[str, bytes]
    checkpoint: Path
    foreign: tuple[Path, ...]


def make_sound_inputs(folder: Path) -> SoundInputs:
    """Everything, below a folder that is new."""
    generated = generate_dataset(folder / "set", num_images=3, image_size=(64, 96))
    annotations = _spelled(json.loads(generated.read_text()))
    generated.write_text(json.dumps(annotations))
    labels = folder / "run"
    records = [*(random_record(seed) for seed in range(10)), failed_record(), failed_record("missing")]
    rows = write_run(labels, records)
    truth = folder / "truth.json"
    truth.write_text(json.dumps(_truth(rows)))
    return SoundInputs(
        folder,
        annotations,
        generated.parent / "images",
        _shards(folder / "shards", annotations),
        _results(annotations),
        labels,
        truth,
        _labelled(folder),
        _pictures(),
        save_small_detector(folder / "checkpoint"),
        _foreign(folder / "foreign"),
    )


def _spelled(document: dict[str, Any]) -> dict[str, Any]:
    """The same objects in every spelling of a mask."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    for number, entry in enumerate(document["annotations"]):
        if number % 4 == 0:
            continue
        height, width = sizes[entry["image_id"]]
        mask = np.asfortranarray(rasterise(entry["segmentation"], height, width).astype(np.uint8))
        packed = coco_mask.encode(mask)
        counts: Any = packed["counts"].decode()
        if number % 4 == 1:
            flat = mask.ravel(order="F")
            edges = np.flatnonzero(np.diff(flat, prepend=0))
            counts = np.diff(np.concatenate(([0], edges, [len(flat)]))).tolist()
        entry["segmentation"] = {"size": [height, width], "counts": counts}
    document["annotations"][-1]["iscrowd"] = 1
    return document


def _shards(folder: Path, document: dict[str, Any]) -> Path:
    """Of one or two rows each; of the masks those that shards can have."""
    objects = []
    for entry in document["annotations"]:
        mask = entry.get("segmentation")
        row = {name: value for name, value in entry.items() if name != "segmentation"}
        row["polygons"] = mask if isinstance(mask, list) else None
        row["counts"] = mask["counts"] if isinstance(mask, dict) and isinstance(mask["counts"], str) else None
        objects.append(row)
    for section, rows, number in (("images", document["images"], 1), ("objects", objects, 2)):
        (folder / section).mkdir(parents=True)
        for begin in range(0, len(rows), number):
            pq.write_table(
                pa.Table.from_pylist(rows[begin : begin + number]), folder / section / f"{begin:03d}.parquet"
            )
    (folder / "categories.json").write_text(json.dumps(document["categories"]))
    return folder


def _results(document: dict[str, Any]) -> list[dict[str, Any]]:
    results = []
    for entry in document["annotations"]:
        found = {key: entry[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        results.append({**found, "score": 0.5 + 0.01 * (entry["id"] % 40)})
    return results


def _truth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Annotations that the detections of label rows were taken from."""
    annotations: list[dict[str, Any]] = []
    names: dict[int, str] = {}
    for row in rows:
        for found in row["detections"] or ():
            names[found["category_id"]] = found["category"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": row["image_id"],
                    "category_id": found["category_id"],
                    "bbox": list(found["bbox"]),
                    "area": float(found["bbox"][2] * found["bbox"][3]),
                    "iscrowd": 0,
                    "segmentation": found["segmentation"],
                }
            )
    return {
        "images": [
            {"id": row["image_id"], "file_name": Path(row["uri"]).name, "width": row["width"], "height": row["height"]}
            for row in rows
            if row["status"] == "ok"
        ],
        "annotations": annotations,
        "categories": [{"id": identity, "name": name} for identity, name in sorted(names.items())],
    }


def _labelled(folder: Path) -> pa.Table:
    write_images(folder / "pictures", 6)
    label_here(folder / "pictures", folder / "labelled")
    files = sorted((folder / "labelled" / "labels").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).sort_by("image_id")


def _pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    color = Image.fromarray(smooth)
    deep = Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40)
    alpha = color.copy()
    alpha.putalpha(128)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (color, "JPEG", {"quality": 90, "exif": exif}),
        "progressive": (color, "JPEG", {"progressive": True}),
        "cmyk": (color.convert("CMYK"), "JPEG", {}),
        "png": (color, "PNG", {}),
        "palette": (color.convert("P"), "PNG", {"transparency": 3}),
        "alpha": (alpha, "PNG", {}),
        "deep": (deep, "PNG", {}),
        "one_bit": (color.convert("1"), "PNG", {}),
        "webp": (color, "WEBP", {}),
        "lossless": (alpha, "WEBP", {"lossless": True}),
        "moving": (color, "WEBP", {"save_all": True, "append_images": [color.rotate(180)]}),
        "gif": (color, "GIF", {"save_all": True, "append_images": [color.rotate(180)]}),
        "bmp": (color, "BMP", {}),
        "tiff": (color, "TIFF", {}),
        "lzw": (color, "TIFF", {"compression": "tiff_lzw"}),
        "jpeg_tiff": (color, "TIFF", {"compression": "jpeg"}),
        "deep_tiff": (deep, "TIFF", {}),
        "ppm": (color, "PPM", {}),
        "tga": (color, "TGA", {}),
    }
    encoded = {}
    for name, (image, form, options) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        encoded[name] = buffer.getvalue()
    return encoded


def _foreign(folder: Path) -> tuple[Path, ...]:
    """A few tensors of another framework's names: enough to be read, named and refused or taken."""
    folder.mkdir()
    state = dict(list(detectron2_state(kind="rpn", device="cpu", num_classes=2).items())[:12])
    small = {name: tensor.flatten()[:40].clone() for name, tensor in state.items()}
    torch.save({"model": small, "epoch": 3, "args": {"lr": 0.1}}, folder / "zip.pth")
    torch.save({"state_dict": small}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    content = {"model": {name: tensor.numpy() for name, tensor in small.items()}, "__author__": "somebody"}
    (folder / "numpy.pkl").write_bytes(pickle.dumps(content))
    arrays = {name: tensor.numpy() for name, tensor in small.items()}
    (folder / "graph.pb").write_bytes(b"".join(constant(name, tensor_message(array)) for name, array in arrays.items()))
    weights = [{"name": name, "shape": array.shape, "dtype": "float32"} for name, array in arrays.items()]
    (folder / "manifest.json").write_text(json.dumps([{"paths": ["shard.bin"], "weights": weights}]))
    (folder / "shard.bin").write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    (folder / "net.prototxt").write_text(face_ssd().text)
    layer = layer_message("block0_1", "Convolution", [np.ones((4, 2, 3, 3)), np.ones(4)])
    (folder / "net.caffemodel").write_bytes(piece(1, b"net") + layer)
    return tuple(sorted(folder.iterdir()))
