"""Speed against the peer in one run on one machine: interleaved rounds, medians, ratios."""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycocotools.mask
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

from maskrcnn_core.benchmark_config import BenchmarkRun
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.generated import generate_dataset
from maskrcnn_core.errors import StorageError
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import save_checkpoint
from maskrcnn_core.weights.torchvision_models import import_torchvision

PEER_NORM_EPS = 1e-5  # of torch's BatchNorm2d, which torchvision builds where no released weights are loaded
_LONG_PER_SHORT = 5 / 3
_MAX_PIXELS = 178_956_970
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Comparison:
    """Two ways to do the same work.

    Attributes:
        names: the peer's and ours.
        seconds: median seconds per image of each.
        ratio: how many times as fast ours is: median of the rounds' ratios.
        detections: mean detections per image of each.
        images: how many images, each measured once per round.
        machine: what it ran on.
    """

    names: tuple[str, str]
    seconds: tuple[float, float]
    ratio: float
    detections: tuple[float, float]
    images: int
    machine: str


def benchmark_detect(run: BenchmarkRun) -> Comparison:
    """torchvision's `maskrcnn_resnet50_fpn` against ours: same weights and images, from uint8 image to COCO RLE.

    Raises:
        StorageError: the folder has no images.
    """
    use_threads(run.threads)
    images = [decode_image(content, max_pixels=_MAX_PIXELS, apply_exif=False) for content in contents_of(run)]
    peer = peer_of(run)
    predictor = imported_predictor(peer, run)
    ways: tuple[Callable[[Tensor], int], ...] = (
        lambda image: len(peer_labels(peer, image)),
        lambda image: len(predictor.predict([image])[0].detections),
    )
    found = [[way(image) for image in images] for way in ways]  # also the warm-up
    rounds: list[tuple[float, ...]] = []
    for _ in range(run.rounds):
        rounds.append(tuple(_seconds(way, images) / len(images) for way in ways))
    return Comparison(
        names=("torchvision maskrcnn_resnet50_fpn", f"ours ({run.precision})"),
        seconds=(statistics.median(r[0] for r in rounds), statistics.median(r[1] for r in rounds)),
        ratio=statistics.median(r[0] / r[1] for r in rounds),
        detections=(statistics.mean(found[0]), statistics.mean(found[1])),
        images=len(images),
        machine=machine(),
    )


def machine() -> str:
    """Processor, threads and versions, for the record of a measurement."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return (
        f"{model}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


def use_threads(threads: int) -> int:
    """The number of threads, all cores for 0, set for torch in this process."""
    threads = threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    return threads


def peer_model(short_side: int, long_side: int, seed: int = 0, **settings: object) -> MaskRCNN:
    """torchvision's `maskrcnn_resnet50_fpn` with seeded random weights that behave like trained ones.

    Batch-norm statistics are perturbed and the logits scaled, so that there are many confident detections.

    Args:
        short_side, long_side: limits of its resizing, pixels.
        settings: further arguments of torchvision's `MaskRCNN`.
    """
    torch.manual_seed(seed)
    model: MaskRCNN = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, min_size=short_side, max_size=long_side, **settings
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
        model.rpn.head.cls_logits.weight.mul_(8.0)
        model.rpn.head.bbox_pred.weight.mul_(5.0)
        model.roi_heads.box_predictor.cls_score.weight.mul_(30.0)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(5.0)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(5.0)
    return model.eval()


def peer_of(run: BenchmarkRun) -> MaskRCNN:
    """The peer at the size that the run asks for."""
    return peer_model(run.short_side, long_side(run), box_detections_per_img=run.max_detections)


def long_side(run: BenchmarkRun) -> int:
    """Limit of the input's long side, pixels."""
    return int(run.short_side * _LONG_PER_SHORT)


def imported_predictor(peer: MaskRCNN, run: BenchmarkRun, checkpoint: Path | None = None) -> Predictor:
    """Our detector with the peer's weights, saved as a checkpoint too where one is named."""
    config, state = import_torchvision(peer.state_dict(), norm_eps=PEER_NORM_EPS)
    config = replace(
        config,
        input=replace(config.input, short_side=run.short_side, long_side=long_side(run)),
        box_head=replace(config.box_head, max_detections=run.max_detections),
    )
    if checkpoint is not None:
        save_checkpoint(checkpoint, state, config)
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state)
    return Predictor(detector, config, PredictorSettings(precision=run.precision, apply_exif=False))


@torch.inference_mode()
def peer_labels(model: MaskRCNN, image: Tensor) -> list[dict[str, object]]:
    """torchvision the way its evaluation reference uses it: soft full-size masks, threshold, pycocotools."""
    found = model([image.float() / 255])[0]
    masks = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
    labels = []
    for mask, box, score, category in zip(
        masks, found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
    ):
        rle = pycocotools.mask.encode(np.asfortranarray(mask))
        labels.append({"category_id": category, "score": score, "bbox": box, "segmentation": rle})
    return labels


def contents_of(run: BenchmarkRun) -> list[bytes]:
    """Encoded images: the first of the folder by name, or generated ones of 640 x 480 or so."""
    if run.images is None:
        with tempfile.TemporaryDirectory() as scratch:
            generate_dataset(Path(scratch) / "set", num_images=run.num_images, seed=0, image_size=(480, 640))
            return [file.read_bytes() for file in sorted((Path(scratch) / "set" / "images").iterdir())]
    folder = Path(run.images)
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in _IMAGE_ENDINGS) if folder.is_dir() else []
    if not files:
        raise StorageError(f"{run.images}: no images with {', '.join(_IMAGE_ENDINGS)}; expected a folder of images")
    return [file.read_bytes() for file in files[: run.num_images]]


def _seconds(way: Callable[[Tensor], int], images: Sequence[Tensor]) -> float:
    started = time.perf_counter()
    for image in images:
        way(image)
    return time.perf_counter() - started
