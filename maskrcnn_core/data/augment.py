"""Random changes to a training image and its objects, every one a function of a seed.

Large-scale jitter, copy-paste (Ghiasi et al., CVPR 2021) and colour jitter; zooming out and cuts are in `framing`. Flip
and multi-scale resizing, which every recipe has, are part of the sample itself (`dataset.Sample`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from maskrcnn_core.data.copy_paste import choose_objects, pasted
from maskrcnn_core.data.scene import Placement, Scene, mirrored, on_canvas, placed
from maskrcnn_core.data.transform import ResizeRule
from maskrcnn_core.kernels.cpu.availability import use_loops


@dataclass(frozen=True)
class ColorJitter:
    """Ranges of random changes to colours, 0 = none, and the share of images that each of them is made to (attributes
    as in `AugmentConfig`, `probability` as its `color_probability`)."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter and what copy-paste needs.

    Attributes:
        scale: smallest and largest factor on top of the scale at which the image fits into the crop.
        crop: (height, width), pixels.
        flip_probability: of the image that objects are pasted from.
        min_visible, min_pixels: as `copy_paste.pasted` and `scene.placed`.
        canvas_color: of the canvas behind images smaller than the crop, where something is pasted; RGB 0..255.
    """

    scale: tuple[float, float]
    crop: tuple[int, int]
    flip_probability: float = 0.5
    min_visible: float = 0.1
    min_pixels: int = 4
    canvas_color: tuple[int, int, int] = (124, 116, 104)


def seeded(seed: int) -> np.random.Generator:
    """Random numbers of one sample."""
    return np.random.Generator(np.random.Philox(seed))


def draw_placement(size: tuple[int, int], rule: ScaleJitter, rng: np.random.Generator) -> Placement:
    """Where an image of `size` (height, width) comes to lie: resized by a random factor, a random part of it kept."""
    fit = min(rule.crop[0] / size[0], rule.crop[1] / size[1]) * rng.uniform(*rule.scale)
    whole = (max(1, round(size[0] * fit)), max(1, round(size[1] * fit)))
    part = (min(whole[0], rule.crop[0]), min(whole[1], rule.crop[1]))
    top, left = (int(rng.integers(long - short + 1)) for long, short in zip(whole, part, strict=True))
    return Placement(whole, top, left, part)


def jittered(
    scene: Scene,
    rule: ScaleJitter,
    rng: np.random.Generator,
    *,
    flip: bool,
    partner: Callable[[], Scene] | None = None,
    keypoint_sources: tuple[int, ...] = (),
    keypoint_offset: float = 0.5,
    resize: ResizeRule = "float",
) -> Scene:
    """Large-scale jitter of an image and, where there is a partner, copy-paste from it.

    Args:
        scene: as read.
        rng: of the sample.
        flip: mirror it.
        partner: reads the scene that objects are pasted from.
        keypoint_sources: see `scene.mirrored`; keypoint_offset: see `scene.placed`.

    Returns:
        At most `rule.crop` large; exactly, where something could be pasted.
    """

    def rescaled(original: Scene, flipped: bool) -> Scene:
        original = mirrored(original, keypoint_sources) if flipped else original
        where = draw_placement(original.size, rule, rng)
        return placed(original, where, resize=resize, keypoint_offset=keypoint_offset, min_pixels=rule.min_pixels)

    base = rescaled(scene, flip)
    if partner is None:
        return base
    source = rescaled(partner(), bool(rng.random() < rule.flip_probability))
    chosen = choose_objects(source, rng)
    base, source = (on_canvas(layer, rule.crop, rule.canvas_color) for layer in (base, source))
    return pasted(base, source, chosen, min_visible=rule.min_visible, min_pixels=rule.min_pixels)


def recolored(pixels: Tensor, rule: ColorJitter, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue changed at random, in random order: [3, H, W] uint8 -> the same, new
    where something changed."""
    factors = [rng.uniform(1.0 - strength, 1.0 + strength) for strength in (rule.brightness, rule.contrast)]
    factors += [rng.uniform(1.0 - rule.saturation, 1.0 + rule.saturation), rng.uniform(-rule.hue, rule.hue)]
    changes = (
        (rule.brightness, functional.adjust_brightness),
        (rule.contrast, functional.adjust_contrast),
        (rule.saturation, functional.adjust_saturation),
        (rule.hue, turned_hue),
    )
    order = rng.permutation(len(changes))
    chosen = rng.random(len(changes)) < rule.probability
    for index in order:
        strength, change = changes[index]
        if strength > 0 and chosen[index]:
            pixels = change(pixels, factors[index])
    return pixels


def turned_hue(pixels: Tensor, share: float) -> Tensor:
    """torchvision's `adjust_hue` of [3, H, W] uint8, in a twentieth of the time where Numba is at hand.

    Args:
        share: of the colour circle, -0.5 to 0.5.
    """
    if not use_loops("hue", _loops_find_the_same):
        turned: Tensor = functional.adjust_hue(pixels, share)
        return turned
    from maskrcnn_core.kernels.cpu.hue import turn_hue  # needs Numba

    return turn_hue(pixels, share)


def _loops_find_the_same() -> bool:
    from maskrcnn_core.kernels.cpu.hue import turn_hue

    pixels = torch.arange(3 * 64, dtype=torch.int32).mul(37).remainder(256).to(torch.uint8).view(3, 8, 8)
    return torch.equal(turn_hue(pixels, 0.3), functional.adjust_hue(pixels, 0.3))
