"""Where converted annotations go: into memory, or into a folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from maskrcnn_core.data.coco.column_schema import OBJECTS, ColumnsInfo
from maskrcnn_core.data.coco.columns import (
    OBJECTS_FILE,
    AnnotationColumns,
    open_columns,
    places_of_objects,
    write_folder,
)
from maskrcnn_core.data.coco.sections import CocoSections


class ColumnsWriter:
    """Collects objects as they come.

    Args:
        folder: an empty one, for the columns; None = they stay in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._batches: list[pa.RecordBatch] = []
        self._file = self._writer = None
        if folder is not None:
            self._file = pa.OSFile(str(folder / OBJECTS_FILE), "wb")
            self._writer = pa.ipc.new_file(self._file, OBJECTS)

    def add(self, batch: pa.RecordBatch) -> None:
        """More objects, in file order."""
        if not batch.num_rows:
            return
        if self._writer is None:
            self._batches.append(batch)
        else:
            self._writer.write_batch(batch)

    def close(self) -> None:
        """The file is complete, or given up."""
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
            self._writer = self._file = None

    def finished(
        self, sections: CocoSections, images: pa.Table, *, source: str, digest: str, sized_by_pictures: bool
    ) -> AnnotationColumns:
        """The columns, once all objects have come.

        Args:
            sections: what was read beside them, found sound.
            images: table of the images.
            source, digest, sized_by_pictures: as of `ColumnsInfo`.
        """
        objects = self._objects()
        places = places_of_objects(images.column("id").to_numpy(), objects.column("image_id").to_numpy())
        has_all = pc.all(pc.and_(pc.greater(images["width"], 0), pc.not_equal(images["file_name"], ""))).as_py()
        info = ColumnsInfo(
            source=source,
            digest=digest,
            categories=tuple(sections.categories),
            keypoint_fault=_keypoint_fault(sections),
            faults=sections.faults.faults(),
            named_by_url=any("named_by_url" in image for image in sections.images.values()),
            has_id_zero=sections.has_id_zero,
            sized_by_pictures=sized_by_pictures,
            is_plain=has_all is not False and not sections.left_out and not sized_by_pictures,
            left_out=tuple(sorted(sections.left_out)),
        )
        if self._folder is None:
            return AnnotationColumns(info, images, objects, *places)
        write_folder(self._folder, info, images, *places)
        return open_columns(str(self._folder))

    def _objects(self) -> pa.Table:
        self.close()
        if self._folder is None:
            return pa.Table.from_batches(self._batches, OBJECTS)
        return pa.ipc.open_file(pa.memory_map(str(self._folder / OBJECTS_FILE))).read_all()


def _keypoint_fault(sections: CocoSections) -> str:
    if sections.keypoint_fault:
        return f"{sections.keypoint_fault}. To mend: correct these images and categories, or remove them."
    if len({tuple(one["keypoints"]) for one in sections.categories if "keypoints" in one}) > 1:
        return "categories have different lists of keypoints, expected one list in the file"
    return ""
