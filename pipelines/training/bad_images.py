"""Images that a run could not use and has replaced: counted once each, written down, and bounded.

OUTPUT/bad_images.jsonl has a line for each: its COCO id, what kind of error it is, and the reason. It is written with
every checkpoint, and read when a run is resumed, so that it counts over the whole run.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from maskrcnn_core.errors import ImageError
from maskrcnn_core.training.batches import BadImage
from pipelines import storage

BAD_IMAGES = "bad_images.jsonl"
"""Their file in the folder of a run."""

_MEND = "mend these images or take them out of the annotation file; or raise data.max_bad_fraction"
# So many bad images say nothing of their share, whatever it is.
_HANDFUL = 10
_SHOWN = 5
# A run whose true share is the allowed one passes it now and then by chance, by a standard deviation or two.
_DEVIATIONS = 3.0


def most_by_chance(seen: int, fraction: float) -> float:
    """Bad images of `seen` that a true share of `fraction` does not make surprising: its mean and three standard
    deviations of a Poisson distribution."""
    expected = fraction * seen
    return expected + _DEVIATIONS * math.sqrt(expected)


class BadImages:
    """The bad images of a run so far.

    Args:
        max_fraction: share of the images seen that may be bad.
        known: from before the run was resumed.
    """

    def __init__(self, max_fraction: float, known: Iterable[BadImage] = ()) -> None:
        self._max_fraction = max_fraction
        self._known: dict[int, BadImage] = {image.image_id: image for image in known}

    def __len__(self) -> int:
        return len(self._known)

    def all(self) -> list[BadImage]:
        """In the order in which they were met."""
        return list(self._known.values())

    def add(self, bad: Sequence[BadImage]) -> list[BadImage]:
        """Count images, each of them once however often it is met; returns those that are new."""
        new = {image.image_id: image for image in bad if image.image_id not in self._known}
        self._known |= new
        return list(new.values())

    def verdict(self, seen: int) -> ImageError | None:
        """Why the run must end, if it must.

        Args:
            seen: images seen so far, each counted once.
        """
        fraction = self._max_fraction
        allowed = max(_HANDFUL, most_by_chance(seen, fraction)) if fraction > 0 else 0
        if len(self) <= allowed:
            return None
        first = [image.reason for image in self.all()[:_SHOWN]]
        more = f"; and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return ImageError(
            self.all()[0].status,
            f"{len(self)} of the first {max(seen, len(self))} training images cannot be used, more than "
            f"data.max_bad_fraction ({fraction:g}) allows: {'; '.join(first)}{more}; {_MEND}",
        )


def write_bad_images(output: str, bad: Sequence[BadImage]) -> None:
    """Write OUTPUT/bad_images.jsonl anew."""
    lines = [json.dumps(asdict(image), ensure_ascii=False) for image in bad]
    storage.write_bytes_atomically(bad_images_uri(output), ("\n".join(lines) + "\n").encode("utf-8", "replace"))


def read_bad_images(output: str) -> list[BadImage]:
    """What `write_bad_images` wrote; nothing where it has not, or where a line is damaged: its image is met again."""
    uri = bad_images_uri(output)
    if not storage.exists(uri):
        return []
    found = []
    for line in storage.read_bytes(uri).decode("utf-8", "replace").splitlines():
        try:
            entry = json.loads(line)
            found.append(BadImage(int(entry["image_id"]), entry["status"], str(entry["reason"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def bad_images_uri(output: str) -> str:
    """Where the list lies."""
    return storage.join(output, BAD_IMAGES)
