"""The augmentation that a run's configuration asks for, as the core's plain rules."""

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.augment import ColorJitter, ScaleJitter
from pipelines.training.data_config import AugmentConfig


def scale_jitter(settings: AugmentConfig, flip_probability: float, pixels: InputConfig) -> ScaleJitter | None:
    """Large-scale jitter and copy-paste; None where they are off. Canvases have the colour that the network sees as
    0."""
    if not settings.jitter_scale:
        return None
    unit = 255.0 if pixels.scale == "unit" else 1.0
    red, green, blue = (round(unit * value) for value in pixels.mean)
    smallest, largest = settings.jitter_scale
    return ScaleJitter(
        scale=(smallest, largest),
        crop=settings.crop,
        flip_probability=flip_probability,
        min_visible=settings.min_visible,
        min_pixels=settings.min_pixels,
        canvas_color=(red, green, blue) if pixels.channels == "rgb" else (blue, green, red),
    )


def color_jitter(settings: AugmentConfig) -> ColorJitter | None:
    """Random changes to colours; None where they are off."""
    rule = ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue)
    return None if rule == ColorJitter() else rule
