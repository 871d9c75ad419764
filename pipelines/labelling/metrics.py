"""Prometheus metrics of a labelling run, through Ray's metrics agent on each node.

maskrcnn_label_images{status}        images labelled, by record status
maskrcnn_label_detections            objects in them
maskrcnn_label_seconds{state}        time of the detector: busy, or waiting for images
maskrcnn_label_chunks                label files written
"""

import sys
from collections.abc import Mapping


class LabelMetrics:
    """The counters of one worker; without Ray they count nothing."""

    def __init__(self) -> None:
        ray = sys.modules.get("ray")
        self._on = ray is not None and bool(ray.is_initialized())
        if not self._on:
            return
        from ray.util.metrics import Counter

        self._images = Counter("maskrcnn_label_images", "Images labelled.", ("status",))
        self._detections = Counter("maskrcnn_label_detections", "Objects or proposals found.")
        self._seconds = Counter("maskrcnn_label_seconds", "Seconds of the detector.", ("state",))
        self._chunks = Counter("maskrcnn_label_chunks", "Label files written.")

    def images(self, statuses: Mapping[str, int], detections: int, busy: float, waited: float) -> None:
        """A group of images is done."""
        if not self._on:
            return
        for status, count in statuses.items():
            self._images.inc(count, {"status": status})
        for state, seconds in (("busy", busy), ("waiting", waited)):
            if seconds > 0:
                self._seconds.inc(seconds, {"state": state})
        if detections:
            self._detections.inc(detections)

    def chunk(self) -> None:
        """A label file is written."""
        if self._on:
            self._chunks.inc(1)
