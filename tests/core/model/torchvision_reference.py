"""torchvision's `maskrcnn_resnet50_fpn` with seeded random weights, and ours beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import MaskRCNN

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.transform import pad_batch, prepare_image
from maskrcnn_core.importers.torchvision import import_torchvision
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import ImageBatch
from pipelines.benchmarks.peer import PEER_NORM_EPS, peer_model


def reference_model(min_size: int = 320, max_size: int = 533, seed: int = 0, **settings: Any) -> MaskRCNN:
    """The benchmark's peer: random weights with many confident detections."""
    return peer_model(min_size, max_size, seed, **settings)


def imported(model: MaskRCNN, **sampling: Any) -> tuple[ModelConfig, Detector]:
    """Ours with the same weights and conventions; `sampling` is that of both stages."""
    config, state = import_torchvision(model.state_dict(), norm_eps=PEER_NORM_EPS)
    config = replace(config, dense=replace(config.dense, **sampling), regions=replace(config.regions, **sampling))
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state)
    return config, detector.eval()


def pictures(shared: Path | None, folder: Path, number: int) -> list[Tensor]:
    """uint8 [3, H, W]: real COCO images where they are at hand, generated ones else."""
    if shared is not None and (shared / "coco" / "images").is_dir():
        files = sorted((shared / "coco" / "images").glob("*.jpg"))[:number]
    else:
        generate_dataset(folder, num_images=number, seed=3)
        files = sorted((folder / "images").glob("*.jpg"))
    return [decode_image(file.read_bytes(), max_pixels=10**8, apply_exif=False) for file in files]


def as_batch(config: ModelConfig, images: list[Tensor], sizes: list[tuple[int, int]]) -> ImageBatch:
    """Resized, normalised and padded as torchvision's transform does."""
    prepared = [
        prepare_image(image, size=size, mean=config.input.mean, std=config.input.std)
        for image, size in zip(images, sizes, strict=True)
    ]
    return pad_batch(prepared, [(image.shape[-2], image.shape[-1]) for image in images], config.input.divisor)
