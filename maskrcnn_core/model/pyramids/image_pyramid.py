"""An image pyramid: one trunk sees the image at several scales (tutorial; He et al., SPP-net, ECCV 2014, section 4.1).

What the levels of a feature pyramid are, maps of several resolutions, without a layer of its own: the dearest pyramid,
and the oldest.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.errors import ConfigError


class ImagePyramid(nn.Module):
    """Levels that are a trunk's last map at each scale.

    Args:
        channels, stride: of the trunk's last map.
        scales: of the images that the trunk sees, in sides of the input; at most 1, since an input holds no more.

    Attributes:
        level_channels, strides: of the levels, in pixels of the images that the trunk sees.
        num_roi_levels: one a scale.

    Raises:
        ConfigError: scales that are none.
    """

    def __init__(self, channels: int, stride: int, scales: Sequence[float]) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ConfigError(f"model.pyramid.image_scales: got {tuple(scales)}, expected numbers above 0")
        self.scales = tuple(scales)
        self.channels, self.level_channels = channels, (channels,) * len(self.scales)
        self.strides: tuple[int, ...] = (stride,) * len(self.scales)
        self.num_roi_levels = len(self.scales)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> the same images at each scale, [N, 3, floor(H * scale), floor(W * scale)].

        A place moves by exactly the scale, whatever is lost to rounding at the far sides.
        """
        return [pixels if scale == 1 else self._resized(pixels, scale) for scale in self.scales]

    def _resized(self, pixels: Tensor, scale: float) -> Tensor:
        return functional.interpolate(
            pixels.float(), scale_factor=scale, mode="bilinear", antialias=True, recompute_scale_factor=False
        ).to(pixels.dtype)
