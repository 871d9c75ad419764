"""The typed configuration of what a run learns from: data sets, and how an image is changed."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import (
    require,
    require_between,
    require_fraction,
    require_not_negative,
    require_positive,
    require_typed,
)
from maskrcnn_core.config.limits import MAX_PIXELS, MAX_SIDE

# Numbers beyond these are mistakes that a machine would only find when it is out of memory.
_MAX_WORKERS = 10_000
_MAX_ZOOM = 100


@dataclass(frozen=True)
class DatasetConfig:
    """Images with COCO annotations."""

    images: str = ""
    """Folder that the file names in the annotations are relative to; names that are absolute or begin with file:// or
    s3:// are read where they are."""
    annotations: str = ""
    """COCO instances JSON file, or a folder of Parquet shards (docs/training.md)."""
    proposals: str = ""
    """Proposals that jobs.label --label.record proposals or jobs.propose wrote; needed where model.dense.enabled is
    false."""

    def __post_init__(self) -> None:
        require_typed("data", self)


@dataclass(frozen=True)
class DataConfig:
    """Training and validation data."""

    train: DatasetConfig = field(default_factory=DatasetConfig)
    """What to learn from."""
    val: DatasetConfig = field(default_factory=DatasetConfig)
    """What to choose the best checkpoint by; empty = keep the last."""
    reader: Literal["local", "ray"] = "local"
    """Who decodes and augments training images: local = each training worker on its own machine; ray = actors of one
    CPU on any machine of the cluster, those without a GPU first. Both give the same batches."""
    workers: int | Literal["auto"] = "auto"
    """Loader processes of each training worker (reader: local; 0 = one background thread) or actors (reader: ray). auto
    = on a GPU the worker's share of its machine's CPUs, two of them left out, at most 12; on a CPU, where the network
    takes them all, 0."""
    max_pixels: int = MAX_PIXELS
    """Larger images are bad ones, pixels."""
    max_bad_fraction: float = 0.01
    """Bad images (missing, damaged, of another size than annotated) are replaced by others and listed in
    OUTPUT/bad_images.jsonl. The run ends where there are more of them than this share of the images seen, by more than
    chance, and more than 10; 0 = at the first one."""
    check_images: int = 32
    """Images of each data set that are read and compared with their annotations before a new run starts."""

    def __post_init__(self) -> None:
        require_typed("data", self)
        if self.workers != "auto":
            require_between("data.workers", self.workers, 0, _MAX_WORKERS)
        require(
            self.reader == "local" or (self.workers != "auto" and self.workers > 0),
            "data.workers",
            self.workers,
            "the number of actors of each training worker, 1 or more, with data.reader ray",
        )
        require_positive("data.max_pixels", self.max_pixels)
        require_fraction("data.max_bad_fraction", self.max_bad_fraction)
        require_not_negative("data.check_images", self.check_images)


@dataclass(frozen=True)
class AugmentConfig:
    """How a training image is changed beyond train.flip_probability and train.short_sides."""

    jitter_scale: tuple[float, ...] = ()
    """Large-scale jitter (Ghiasi et al., CVPR 2021): the image is fitted into `crop`, enlarged by a factor between
    these two, and a part of at most `crop` is kept; empty = off, resized to train.short_sides."""
    crop: tuple[int, int] = (1024, 1024)
    """Height and width of the crop, pixels (jitter_scale)."""
    copy_paste: float = 0.0
    """Share of images on which random objects of another image are pasted (same paper; needs jitter_scale)."""
    zoom_out: float = 1.0
    """Zooming out (Liu et al., SSD, ECCV 2016): the image is laid at random on a canvas of the mean colour, whose
    sides are up to this many times its own (SSD: 4); 1 = off."""
    zoom_probability: float = 0.5
    """Share of images that zoom_out is applied to."""
    cut_overlaps: tuple[float, ...] = ()
    """Cuts (same paper): one of these is drawn for each image, and a random part of it is kept, sides 0.3 to 1 of its
    own and aspect 0.5 to 2, with which some object has at least this IoU; 1 = nothing is cut off. SSD: 0, .1, .3, .5,
    .7, .9, 1. An object whose centre is cut off is dropped. Empty = off."""
    min_visible: float = 0.1
    """An object of which less than this share is left under pasted ones is dropped."""
    min_pixels: int = 4
    """An object with fewer visible pixels is dropped (jitter_scale; zoom_out and cut_overlaps with masks)."""
    brightness: float = 0.0
    """Brightness is multiplied by a factor between 1 - this and 1 + this."""
    contrast: float = 0.0
    """The same for contrast."""
    saturation: float = 0.0
    """The same for saturation."""
    hue: float = 0.0
    """Hue is turned by at most this share of the colour circle, up to 0.5."""
    color_probability: float = 1.0
    """Share of images to which each of these four is done (SSD: 0.5)."""

    def __post_init__(self) -> None:
        require_typed("train.augment", self)
        where = "train.augment"
        require(
            len(self.jitter_scale) in (0, 2) and all(1e-3 <= scale <= 1e3 for scale in self.jitter_scale),
            f"{where}.jitter_scale",
            self.jitter_scale,
            "two numbers above 0 (0.001 to 1000), or none",
        )
        require(
            tuple(sorted(self.jitter_scale)) == tuple(self.jitter_scale),
            f"{where}.jitter_scale",
            self.jitter_scale,
            "the smaller number first",
        )
        require(
            all(1 <= side <= MAX_SIDE for side in self.crop),
            f"{where}.crop",
            self.crop,
            f"height and width above 0, up to {MAX_SIDE:,}",
        )
        fractions = ("copy_paste", "min_visible", "brightness", "contrast", "saturation", "zoom_probability")
        for name in (*fractions, "color_probability"):
            require_fraction(f"{where}.{name}", getattr(self, name))
        self._check_framing(where)
        require(0.0 <= self.hue <= 0.5, f"{where}.hue", self.hue, "a number from 0 to 0.5")
        require_not_negative(f"{where}.min_pixels", self.min_pixels)
        require(
            self.copy_paste == 0.0 or bool(self.jitter_scale),
            f"{where}.copy_paste",
            self.copy_paste,
            "0 where train.augment.jitter_scale is empty; set it, for example to [0.1, 2.0]",
        )

    def _check_framing(self, where: str) -> None:
        require_between(f"{where}.zoom_out", self.zoom_out, 1, _MAX_ZOOM)
        require(
            all(0.0 <= overlap <= 1.0 for overlap in self.cut_overlaps),
            f"{where}.cut_overlaps",
            self.cut_overlaps,
            "numbers from 0 to 1",
        )
        require(
            not self.jitter_scale or (self.zoom_out == 1.0 and not self.cut_overlaps),
            f"{where}.jitter_scale",
            self.jitter_scale,
            "empty with zoom_out or cut_overlaps: each of them says which part of an image is shown",
        )
