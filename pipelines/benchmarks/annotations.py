"""Annotations as columns: time from a file to the first batch, memory of every process, beside pycocotools' reader.

Each figure is of a process of its own. Memory is what the process has for itself (its anonymous pages): pages of
mapped files are one copy for all processes of a machine, and go when others need the room.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maskrcnn_core.errors import UserError
from pipelines.benchmarks.annotation_files import write_coco_file, write_shards
from pipelines.benchmarks.config import AnnotationsBenchmarkRun

_BEFORE = """
import json, sys, time
import torch, ray
from maskrcnn_core.data.coco.conversion import Reader
from maskrcnn_core.data.coco.dataset import dataset_of
from maskrcnn_core.data.targets import object_targets
from maskrcnn_core.training.repeat_factors import dataset_repeat_factors
from maskrcnn_core.training.sampler import BatchPlan
from pipelines.annotations.columns import annotation_columns
from pipelines.training.data_summary import summarize
def own():
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return [int(fields[name].split()[0]) << 10 for name in ("RssAnon", "VmHWM")]
uri = sys.argv[1]
own_before, start = own()[0], time.perf_counter()
"""

_FIRST_BATCH = """
columns = annotation_columns(uri, Reader())
read = time.perf_counter() - start
dataset = dataset_of(columns, require_masks=False)
plan = BatchPlan(dataset.sizes, batch_size=16, seed=0, aspect_ratio_factor=3,
                 repeat_factors=dataset_repeat_factors(dataset, float(sys.argv[2])))
for sample in plan.batch(0):
    image = dataset.images[sample.index]
    object_targets(image, dataset.label_of, input_size=(image.height, image.width), mask_size=112)
seconds = time.perf_counter() - start
far = len(dataset.images) // 16 * 3 + 1
plan.batch(far)
begin = time.perf_counter()
for step in range(far, far + 100):
    plan.batch(step)
print(json.dumps({"images": len(dataset.images), "objects": int(columns.numbers_of_objects.sum()), "read": read,
                  "seconds": seconds, "step": (time.perf_counter() - begin) / 100, "own": own()[0] - own_before,
                  "peak": own()[1]}))
"""

_FURTHER = """
dataset = dataset_of(annotation_columns(uri, Reader()), require_masks=False)
indices = torch.randint(len(dataset.images), (5000,), generator=torch.Generator().manual_seed(0)).tolist()
objects = sum(len(dataset.images[index].objects) for index in indices)
print(json.dumps({"images": len(indices), "objects": objects, "read": 0.0,
                  "seconds": time.perf_counter() - start, "step": 0.0, "own": own()[0] - own_before, "peak": own()[1]}))
"""

_PEER = """
import contextlib, io
from pycocotools.coco import COCO
with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(uri)
seconds = time.perf_counter() - start
print(json.dumps({"images": len(truth.imgs), "objects": len(truth.anns), "read": seconds, "seconds": seconds,
                  "step": 0.0, "own": own()[0] - own_before, "peak": own()[1]}))
"""


@dataclass(frozen=True)
class ProcessCost:
    """What one process needed.

    Attributes:
        name: of what it did.
        images, objects: that it had at hand.
        read: seconds until the annotations were at hand.
        seconds: until the targets of the first batch were.
        step: seconds to plan a step, three epochs later.
        own: bytes of memory of its own, beyond those that it had with everything imported.
        peak: most bytes resident, with the pages of mapped files.
    """

    name: str
    images: int
    objects: int
    read: float
    seconds: float
    step: float
    own: int
    peak: int


def benchmark_annotations(run: AnnotationsBenchmarkRun, show: Callable[[ProcessCost], None]) -> None:
    """Write the annotations, read them in processes, and show each one's cost.

    Raises:
        UserError: a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="maskrcnn-annotations-", dir=run.folder or None) as scratch:
        uri = Path(scratch) / ("shards" if run.form == "shards" else "annotations.json")
        (write_shards if run.form == "shards" else write_coco_file)(uri, run.num_images, run.num_objects)
        environment = {**os.environ, "MASKRCNN_CACHE": f"{scratch}/cache"}
        for name, script in (
            ("first", _FIRST_BATCH),
            ("again", _FIRST_BATCH),
            ("a further process", _FURTHER),
            *((("pycocotools", _PEER),) if run.form == "json" and run.peer else ()),
        ):
            show(_measured(name, script, [str(uri), str(run.repeat_threshold)], environment))


def _measured(name: str, script: str, arguments: list[str], environment: dict[str, str]) -> ProcessCost:
    command = [sys.executable, "-c", _BEFORE + script, *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise UserError(f"{name}: the process failed: {reason[0]}")
    return ProcessCost(name, **json.loads(process.stdout))
