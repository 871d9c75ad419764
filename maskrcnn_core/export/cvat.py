"""CVAT for images 1.1: one XML file of images with their shapes, to upload as annotations of a task.

Format: docs.cvat.ai/docs/other/xml_format, version 1.1, mode annotation. A mask's `rle` counts pixels along the rows of
its own rectangle, background first. CVAT finds a task's frames by the images' names and its labels by theirs; the task
needs them beforehand (with a number attribute `score` where the scores are to be kept).
"""

from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from maskrcnn_core.data.outlines import uncompressed_rle
from maskrcnn_core.data.segmentation import ObjectMask
from maskrcnn_core.export.formats import ExportFormat, Written
from maskrcnn_core.export.polygons import mask_polygon
from maskrcnn_core.export.safe_names import xml_text
from maskrcnn_core.export.source import (
    ExportFile,
    ExportImage,
    ExportStyle,
    LabelSource,
    Once,
    Survey,
    is_empty,
    labelled_keypoints,
    mask_of,
)
from maskrcnn_core.records.detections import DetectionRecord

_LINE_ENDS = {"\r": "&#13;"}  # a reader would take it for a newline


def cvat_files(source: LabelSource, style: ExportStyle) -> Iterator[ExportFile]:
    """One XML file."""
    yield ExportFile("", _document(source, style))


def _document(source: LabelSource, style: ExportStyle) -> Iterator[str | Once]:
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    yield Once(head + _meta(source.survey))
    names = source.survey.shown_names
    for number, labelled in enumerate(source.labelled(), source.first_image):
        image = labelled.image
        yield (
            f'<image id="{number}" name={_attribute(image.name)} width="{image.width}" height="{image.height}">\n'
            + "".join(
                _shapes(detection, image, style, names[detection.category_id])
                for detection in labelled.objects
                if not is_empty(detection, image)
            )
            + "</image>\n"
        )
    yield Once("</annotations>\n")


def _meta(survey: Survey) -> str:
    labels = "".join(
        f"<label><name>{escape(name, _LINE_ENDS)}</name><type>any</type><attributes><attribute>"
        "<name>score</name><mutable>False</mutable><input_type>number</input_type><default_value>0</default_value>"
        "<values>0;1;0.0001</values></attribute></attributes></label>\n"
        for name in survey.shown_names.values()
    )
    return (
        f"<meta><task><size>{survey.images}</size><mode>annotation</mode><overlap>0</overlap>\n"
        f"<labels>\n{labels}</labels>\n</task></meta>\n"
    )


def _attribute(text: str) -> str:
    return quoteattr(xml_text(text))


def _shapes(detection: DetectionRecord, image: ExportImage, style: ExportStyle, name: str) -> str:
    """The object's mask, polygon or box, and its keypoints as one shape of points."""
    mask = mask_of(detection, image)
    label = _attribute(name)
    score = f'<attribute name="score">{detection.score:.4f}</attribute>'
    if mask is None:
        x, y, w, h = detection.bbox
        corners = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}"'
        text = _shape("box", label, corners, score)
    elif style.polygons:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in mask_polygon(mask, style.tolerance).tolist())
        text = _shape("polygon", label, f'points="{points}"', score)
    else:
        text = _shape("mask", label, _mask_geometry(mask), score)
    if detection.keypoints is not None:
        flat = labelled_keypoints(detection.keypoints, style.min_keypoint_score)
        # Index of a pixel to its middle: CVAT's coordinates are continuous.
        there = [f"{x + 0.5:.2f},{y + 0.5:.2f}" for x, y, v in zip(flat[::3], flat[1::3], flat[2::3], strict=True) if v]
        text += _shape("points", label, f'points="{";".join(there)}"', score) if there else ""
    return text


def _shape(tag: str, label: str, geometry: str, inner: str) -> str:
    return f'<{tag} label={label} source="auto" occluded="0" {geometry} z_order="0">{inner}</{tag}>\n'


def _mask_geometry(mask: ObjectMask) -> str:
    height, width = mask.pixels.shape
    runs = ", ".join(map(str, uncompressed_rle(mask.pixels.T)["counts"]))
    return f'rle="{runs}" left="{mask.left}" top="{mask.top}" width="{width}" height="{height}"'


def _use(written: Written) -> str:
    del written  # CVAT's own pages ask for the file
    return "open a task with the same images and labels; upload annotations, CVAT for images 1.1"


FORMAT = ExportFormat(cvat_files, _use)
