"""FiftyOne's COCODetectionDataset: a folder with labels.json, and data.json that says where each image lies.

    fo.Dataset.from_dir(dataset_dir=PATH, dataset_type=fo.types.COCODetectionDataset, data_path="data.json",
                        label_types=["detections", "segmentations", "keypoints"])

Layout: docs.voxel51.com/user_guide/import_datasets.html, COCODetectionDataset, with the data manifest that `data_path`
describes there; read in FiftyOne 1.22's `COCODetectionDatasetImporter`, which takes an annotation's `score` for the
confidence and run lengths for instance masks. (The layout FiftyOneDataset of samples.json and metadata.json carries the
database schema of one FiftyOne version, so that it is left to FiftyOne.)
"""

from collections.abc import Iterator

from maskrcnn_core.export.coco import to_json
from maskrcnn_core.export.coco_dataset import dataset_pieces
from maskrcnn_core.export.formats import ExportFormat, Written
from maskrcnn_core.export.source import ExportFile, ExportStyle, LabelSource, Listed, Once


def fiftyone_files(source: LabelSource, style: ExportStyle) -> Iterator[ExportFile]:
    """data.json, then labels.json; a folder."""
    yield ExportFile("data.json", _uris(source))
    yield ExportFile("labels.json", dataset_pieces(source, style, source.survey.shown_names))


def _uris(source: LabelSource) -> Iterator[Once | Listed]:
    yield Once("{")
    yield from (Listed(f"{to_json(image.name)}:{to_json(image.uri)}") for image in source.images())
    yield Once("\n}\n")


def _use(written: Written) -> str:
    return (
        f"fiftyone.Dataset.from_dir({written.files[0]!r}, dataset_type=fiftyone.types.COCODetectionDataset, "
        'data_path="data.json", label_types=["segmentations"])'
    )


FORMAT = ExportFormat(fiftyone_files, _use, is_folder=True, draws="outlines")
