"""Pieces of a large annotation file converted in Ray tasks, in the order of the file."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from maskrcnn_core.data.coco.conversion import Converted, ImageSizes
from maskrcnn_core.data.coco.json_columns import convert_text
from pipelines.cluster.connection import nodes


def convert_in_tasks(pieces: Iterator[bytes], images: ImageSizes, keypoints: Mapping[int, int]) -> Iterator[Converted]:
    """`convert_text` of each piece in tasks of one CPU; needs a connected cluster.

    As many pieces are under way as the cluster has CPUs, and one more, so that a file of any size needs no memory here.
    """
    task = ray.remote(num_cpus=1)(convert_text)
    images_there, keypoints_there = ray.put(images), ray.put(dict(keypoints))
    most = 1 + max(1, sum(node.cpus for node in nodes()))
    waiting: deque[Any] = deque()
    for piece in pieces:
        if len(waiting) >= most:
            yield ray.get(waiting.popleft())
        waiting.append(task.remote(piece, images_there, keypoints_there))
    while waiting:
        yield ray.get(waiting.popleft())
