"""The columns that annotations are kept in: plain Arrow types, the same in memory, in a file and in Parquet shards.

| table | column | |
|---|---|---|
| images | id int64, file_name, width, height int32 | as stored, no EXIF turn; "" and 0 where they are not known |
| | neg_category_ids, not_exhaustive_category_ids | LVIS' lists; null where an image has none |
| objects | id, image_id int64, category_id int32 | an annotation; in file order |
| | bbox double[4] | x, y, width, height as annotated, original pixels |
| | area double, iscrowd uint8 | |
| | polygons list of lists of double | x, y, ... as annotated; empty where there are none |
| | counts | run lengths of the whole image as COCO's text; "" where there are none |
| | keypoints list of double, num_keypoints int32 | x, y, visibility ...; empty where none are annotated |
| | unread | the entry's JSON, where the size of its image is not known: a mask is judged with it; else "" |

Numbers are doubles, as pycocotools reads them: a polygon in less is another mask, and other scores.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from maskrcnn_core.data.coco.entry_faults import Faults
from maskrcnn_core.errors import AnnotationError

VERSION = 1
"""Of the columns; folders of another one are built anew."""

IMAGES = pa.schema(
    [
        ("id", pa.int64()),
        ("file_name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("neg_category_ids", pa.list_(pa.int64())),
        ("not_exhaustive_category_ids", pa.list_(pa.int64())),
    ]
)
OBJECTS = pa.schema(
    [
        ("id", pa.int64()),
        ("image_id", pa.int64()),
        ("category_id", pa.int32()),
        ("bbox", pa.list_(pa.float64(), 4)),
        ("area", pa.float64()),
        ("iscrowd", pa.uint8()),
        ("polygons", pa.list_(pa.list_(pa.float64()))),
        ("counts", pa.string()),
        ("keypoints", pa.list_(pa.float64())),
        ("num_keypoints", pa.int32()),
        ("unread", pa.string()),
    ]
)
ORDER = pa.schema([("object", pa.int64())])
PLACES = pa.schema([("first", pa.int64()), ("number", pa.int32())])


@dataclass(frozen=True)
class ColumnsInfo:
    """What is known of annotations beside their columns.

    Attributes:
        source: file or folder that they come from, for messages.
        digest: of its content.
        categories: clean entries in file order (`sections`).
        keypoint_fault: why the categories' lists of keypoints cannot be used; empty where they can.
        faults: what was left out or mended in reading everything, masks and keypoints too.
        named_by_url: some file names are the last two parts of a `coco_url`.
        has_id_zero: an annotation has the id 0.
        sized_by_pictures: sizes of some images are those of the pictures.
        is_plain: all images have a name and a size, so that all readers see the same images.
        left_out: ids of images that were not used.
        version: `VERSION`.
    """

    source: str
    digest: str
    categories: tuple[dict[str, Any], ...]
    keypoint_fault: str = ""
    faults: Faults = field(default_factory=Faults)
    named_by_url: bool = False
    has_id_zero: bool = False
    sized_by_pictures: bool = False
    is_plain: bool = True
    left_out: tuple[int, ...] = ()
    version: int = VERSION

    def to_json(self) -> bytes:
        """As a file holds it."""
        return json.dumps(asdict(self), ensure_ascii=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "ColumnsInfo":
        """What `to_json` has written.

        Raises:
            AnnotationError: it is something else, or of another version.
        """
        try:
            values: Mapping[str, Any] = json.loads(content)
            if values["version"] != VERSION:
                raise AnnotationError(f"annotation columns of version {values['version']}, expected {VERSION}")
            known = dict(values)
            known["categories"] = tuple(values["categories"])
            known["left_out"] = tuple(values["left_out"])
            first = {kind: tuple(lines) for kind, lines in values["faults"]["first"].items()}
            known["faults"] = Faults(dict(values["faults"]["counts"]), first)
            return cls(**known)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnnotationError(f"no annotation columns ({type(error).__name__}: {error})") from None
