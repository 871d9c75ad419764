"""The augmentation that a run's configuration asks for, as the core's plain rules."""

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.augment import ColorJitter, ScaleJitter
from maskrcnn_core.data.framing import LETTERBOX_COLOR, Framing
from pipelines.training.data_config import AugmentConfig


def scale_jitter(settings: AugmentConfig, flip_probability: float, pixels: InputConfig) -> ScaleJitter | None:
    """Large-scale jitter and copy-paste; None where they are off. Canvases have the colour that the network sees as
    0."""
    if not settings.jitter_scale:
        return None
    smallest, largest = settings.jitter_scale
    return ScaleJitter(
        scale=(smallest, largest),
        crop=settings.crop,
        flip_probability=flip_probability,
        min_visible=settings.min_visible,
        min_pixels=settings.min_pixels,
        canvas_color=_mean_color(pixels),
    )


def framing(settings: AugmentConfig, pixels: InputConfig) -> Framing | None:
    """Zooming out and cuts; None where they are off."""
    if settings.zoom_out == 1.0 and not settings.cut_overlaps:
        return None
    return Framing(
        zoom_out=settings.zoom_out,
        zoom_probability=settings.zoom_probability,
        overlaps=settings.cut_overlaps,
        min_pixels=settings.min_pixels,
        canvas_color=LETTERBOX_COLOR if pixels.fit == "letterbox" else _mean_color(pixels),
    )


def _mean_color(pixels: InputConfig) -> tuple[int, int, int]:
    """RGB 0..255 of what the network sees as 0."""
    unit = 255.0 if pixels.scale == "unit" else 1.0
    red, green, blue = (round(unit * value) for value in pixels.mean)
    return (red, green, blue) if pixels.channels == "rgb" else (blue, green, red)


def color_jitter(settings: AugmentConfig) -> ColorJitter | None:
    """Random changes to colours; None where they are off."""
    strengths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    return ColorJitter(*strengths, settings.color_probability) if any(strengths) else None
