"""What passes by on its way from the labels into an export, counted."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from maskrcnn_core.export.source import (
    ExportImage,
    LabelledImage,
    LabelSource,
    Survey,
    is_empty,
    is_too_large,
)


@dataclass(frozen=True)
class Counts:
    """Of an export, or of a part of one.

    Attributes:
        objects: that passed by.
        empty: of these, with nothing to draw.
        renamed: images with another name in the export than in the labels.
        undrawn: objects kept back because they cannot be drawn.
    """

    objects: int = 0
    empty: int = 0
    renamed: int = 0
    undrawn: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.objects + other.objects,
            self.empty + other.empty,
            self.renamed + other.renamed,
            self.undrawn + other.undrawn,
        )


@dataclass
class CountedSource:
    """A `LabelSource` that counts the objects that pass by, and keeps those back that cannot be drawn.

    Attributes:
        source: that is counted.
        draws: objects are drawn.
        counts: so far.
    """

    source: LabelSource
    draws: bool
    counts: Counts = field(default_factory=Counts)

    @property
    def survey(self) -> Survey:
        """See `LabelSource`."""
        return self.source.survey

    @property
    def first_image(self) -> int:
        """See `LabelSource`."""
        return self.source.first_image

    def images(self) -> Iterator[ExportImage]:
        """See `LabelSource`."""
        return self.source.images()

    def labelled(self) -> Iterator[LabelledImage]:
        """See `LabelSource`."""
        for labelled in self.source.labelled():
            undrawn = 0
            if self.draws and any(is_too_large(detection, labelled.image) for detection in labelled.objects):
                kept = tuple(detection for detection in labelled.objects if not is_too_large(detection, labelled.image))
                undrawn = len(labelled.objects) - len(kept)
                labelled = LabelledImage(labelled.image, kept)
            self.counts += Counts(
                len(labelled.objects),
                sum(is_empty(detection, labelled.image) for detection in labelled.objects),
                int(labelled.image.path != labelled.image.name),
                undrawn,
            )
            yield labelled
