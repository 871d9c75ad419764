"""Labelling while processes, nodes and the driver are killed: what is lost, repeated or torn.

A cluster of three nodes on this machine labels the same images again and again; in each round, at moments drawn from
the round's seed, SIGKILL takes a detector's process, a node (whose replacement comes a little later, as a spot
machine's does) and the driver (whose command is then given again). Every round must end in the rows of an undisturbed
run.
"""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines.benchmarks.config import ChaosRun
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify

# Rows of two runs are equal within this, since batches may be composed differently.
_TOLERANCE = 1e-3

_NODE_CPUS = 2
_NODES = 3
_NODE_ATTEMPTS = 3
_REPLACED_AFTER_SECONDS = 5.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class ChaosRound:
    """What one round came to.

    Attributes:
        seed: of its moments.
        killed: how many processes of each kind.
        lost, repeated, torn, different: images without a row; rows too many; files that cannot be read; rows unlike
            those of the undisturbed run.
        verified: `jobs.verify` has nothing to object to.
        seconds: from the first start to the last end.
    """

    seed: int
    killed: dict[str, int]
    lost: int
    repeated: int
    torn: int
    different: int
    verified: bool
    seconds: float


@dataclass
class _Victims:
    """Processes of the cluster under test."""

    cluster: Any
    killed: dict[str, int] = field(default_factory=lambda: {"worker": 0, "node": 0, "driver": 0})
    replacements: list[float] = field(default_factory=list)


def benchmark_chaos(run: ChaosRun, on_round: Callable[[ChaosRound], None] | None = None) -> list[ChaosRound]:
    """Label under fire, `run.rounds` times; `on_round` is told of each as it ends."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch, _quiet_cluster_environment():
        folder = Path(scratch)
        generate_dataset(folder / "set", num_images=run.num_images, seed=run.seed, image_size=(96, 128))
        checkpoint = run.checkpoint or str(small_checkpoint(folder / "checkpoint"))
        command = _command(checkpoint, folder / "set" / "images", run)
        subprocess.run([*command, "--output", str(folder / "clean")], check=True, stdout=subprocess.DEVNULL)
        clean, _ = _rows(folder / "clean")
        rounds = []
        for seed in range(run.seed, run.seed + run.rounds):
            rounds.append(_round(command, folder / f"round{seed}", seed, run, clean))
            if on_round is not None:
                on_round(rounds[-1])
        return rounds


def small_checkpoint(folder: Path) -> Path:
    """A Mask R-CNN with random weights on ResNet-18, fast enough to let processes die often."""
    config = ModelConfig(
        input=InputConfig(short_side=96, long_side=160),
        backbone=BackboneConfig("resnet18", pretrained=False),
        pyramid=PyramidConfig(channels=32),
        dense=DenseConfig(anchors=AnchorConfig(sizes=(8, 16, 32, 64, 96)), pre_nms_test=100, post_nms_test=50),
        regions=RegionsConfig(canonical_size=56.0),
        box_head=BoxHeadConfig(channels=64, min_score=0.0, max_detections=10),
        mask_head=MaskHeadConfig(channels=32),
        categories=(Category(1, "one"), Category(2, "two")),
    )
    torch.manual_seed(0)
    save_checkpoint(folder, build_detector(config, load_pretrained=False).state_dict(), config)
    return folder


def _command(checkpoint: str, images: Path, run: ChaosRun) -> list[str]:
    settings = {"rows_per_file": run.rows_per_file, "num_workers": _NODES - 1, "threads_per_worker": 1}
    command = [sys.executable, "-m", "jobs.label", "--checkpoint", checkpoint, "--images", str(images)]
    return command + [word for name, value in settings.items() for word in (f"--label.{name}", str(value))]


def _round(command: list[str], output: Path, seed: int, run: ChaosRun, clean: Mapping[int, Any]) -> ChaosRound:
    dice = random.Random(seed)
    started = time.monotonic()
    with _cluster() as cluster:
        victims = _Victims(cluster)
        wanted = [kind for kind in ("worker", "node", "driver") for _ in range(run.kills)]
        dice.shuffle(wanted)
        argv = [*command, "--output", str(output), "--cluster.address", cluster.address]
        driver = _start(argv)
        next_kill = time.monotonic() + dice.uniform(0.0, run.pause)
        while (code := driver.poll()) is None or code < 0:
            if code is not None:
                driver = _start(argv)  # the same command again
            _replace_nodes(victims)
            if wanted and time.monotonic() >= next_kill and _is_labelling(output):
                if _kill(wanted[-1], victims, driver, dice):
                    victims.killed[wanted.pop()] += 1
                next_kill = time.monotonic() + dice.uniform(0.0, run.pause)
            time.sleep(_POLL_SECONDS)
        if code != 0:
            raise RuntimeError(f"jobs.label ended with {code} in the round of seed {seed}")
    rows, torn = _rows(output)
    repeated = sum(len(copies) - 1 for copies in rows.values())
    different = sum(not _equal(rows[key][0], clean[key][0]) for key in clean.keys() & rows.keys())
    return ChaosRound(
        seed=seed,
        killed=victims.killed,
        lost=len(clean.keys() - rows.keys()),
        repeated=repeated,
        torn=torn,
        different=different + len(rows.keys() - clean.keys()),
        verified=verify(VerifyRun(labels=str(output))).passed,
        seconds=time.monotonic() - started,
    )


# ---- the cluster -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet_cluster_environment() -> Iterator[None]:
    """The nodes of a test cluster trust each other and say nothing."""
    wanted = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    former = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _cluster() -> Iterator[Any]:
    """A head and two more nodes on this machine, each with logical CPUs of its own."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": _NODE_CPUS, "include_dashboard": False})
    try:
        for _ in range(_NODES - 1):
            _add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def _add_node(cluster: Any) -> None:
    """One more node; three of them starting on one machine may take longer than the half minute that Ray grants."""
    for _ in range(_NODE_ATTEMPTS - 1):
        with contextlib.suppress(Exception):  # Ray raises it bare
            cluster.add_node(num_cpus=_NODE_CPUS)
            return
    cluster.add_node(num_cpus=_NODE_CPUS)


def _start(argv: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL)


def _is_labelling(output: Path) -> bool:
    """Before the first file there is nothing to lose."""
    return any((output / "labels").glob("*.parquet"))


def _kill(kind: str, victims: _Victims, driver: "subprocess.Popen[bytes]", dice: random.Random) -> bool:
    """Whether there was something to kill."""
    if kind == "driver":
        driver.kill()
        return True
    if kind == "node":
        nodes = [node for node in victims.cluster.list_all_nodes() if node is not victims.cluster.head_node]
        if not nodes:
            return False
        victims.cluster.remove_node(dice.choice(nodes), allow_graceful=False)
        victims.replacements.append(time.monotonic() + _REPLACED_AFTER_SECONDS)
        return True
    detectors = list(_detector_processes(victims.cluster))
    if not detectors:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(dice.choice(detectors), signal.SIGKILL)
    return True


def _replace_nodes(victims: _Victims) -> None:
    due = [moment for moment in victims.replacements if moment <= time.monotonic()]
    for moment in due:
        _add_node(victims.cluster)
        victims.replacements.remove(moment)


def _detector_processes(cluster: Any) -> Iterator[int]:
    """Processes of the label workers below this cluster's raylets."""
    raylets = {
        process.process.pid for node in cluster.list_all_nodes() for process in node.all_processes.get("raylet", [])
    }
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(entry.name)
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and "LabelWorker" in (entry / "cmdline").read_text():
                yield pid


# ---- the rows --------------------------------------------------------------------------------------------------------


def _rows(output: Path) -> tuple[dict[int, list[dict[str, Any]]], int]:
    """All rows by image id, and the number of files that cannot be read."""
    rows: dict[int, list[dict[str, Any]]] = {}
    torn = 0
    for file in (output / "labels").glob("*.parquet"):
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowInvalid):
            torn += 1
            continue
        for row in table.to_pylist():
            rows.setdefault(row["image_id"], []).append(row)
    return rows, torn


def _equal(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Ids and statuses exactly, boxes and scores within the tolerance."""
    if (row["uri"], row["status"], row["model"]) != (other["uri"], other["status"], other["model"]):
        return False
    detections, expected = row["detections"], other["detections"]
    if len(detections) != len(expected):
        return False
    ours, theirs = (
        np.array([[entry["category_id"], entry["score"], *entry["bbox"]] for entry in rows]).reshape(-1, 6)
        for rows in (detections, expected)
    )
    return bool(np.allclose(ours, theirs, rtol=0.0, atol=_TOLERANCE))
