"""The hue of an 8-bit image turned, to the last bit as torchvision's `adjust_hue` has it.

torchvision goes to hue, saturation and value and back in some fifty operations on whole images. Here a pixel stays in
registers.
"""

import numpy as np
import torch
from torch import Tensor

from maskrcnn_core.kernels.cpu.compilation import compiled

# Factors between bytes and the unit interval, as torchvision has them.
_UNIT = np.float32(1.0 / 255.0)
_BYTE = np.float32(255.999)
_SIXTH = np.float32(1.0 / 6.0)
_ZERO, _ONE, _TWO, _FOUR, _SIX = (np.float32(number) for number in (0.0, 1.0, 2.0, 4.0, 6.0))


def turn_hue(pixels: Tensor, share: float) -> Tensor:
    """The image with its hue turned.

    Args:
        pixels: [3, H, W] uint8 RGB.
        share: of the colour circle, -0.5 to 0.5.
    """
    source = pixels.contiguous()
    turned = torch.empty_like(source)
    _turn(source.view(3, -1).numpy(), turned.view(3, -1).numpy(), np.float32(share))
    return turned


@compiled()
def _turn(source: np.ndarray, turned: np.ndarray, share: np.float32) -> None:
    for place in range(source.shape[1]):
        red = np.float32(source[0, place]) * _UNIT
        green = np.float32(source[1, place]) * _UNIT
        blue = np.float32(source[2, place]) * _UNIT
        value, least = max(red, green, blue), min(red, green, blue)
        # Grey has neither saturation nor hue: whatever is divided by, the result is it itself.
        distance = value - least if value != least else _ONE
        saturation = (value - least) / (value if value != least else _ONE)
        # The sector and the place in it, as a share of the circle.
        to_red, to_green, to_blue = (value - red) / distance, (value - green) / distance, (value - blue) / distance
        if value == red:
            hue = to_blue - to_green
        elif value == green:
            hue = to_red + _TWO - to_blue
        else:
            hue = to_green + _FOUR - to_red
        hue = hue * _SIXTH + _ONE
        hue = hue - _ONE if hue >= _ONE else hue
        # Turned, and back into the circle.
        hue = hue + share
        hue = hue - _ONE if hue >= _ONE else hue
        hue = hue + _ONE if hue < _ZERO else hue
        # The three values that channels have in a sector beside `value`.
        sixths = hue * _SIX
        sector = np.floor(sixths)
        rising = saturation * (sixths - sector)
        pale = _ONE - saturation
        low = _bounded(pale * value)
        falls = _bounded((_ONE - rising) * value)
        rises = _bounded((rising + pale) * value)
        index = int(sector) % 6
        if index == 0:
            red, green, blue = value, rises, low
        elif index == 1:
            red, green, blue = falls, value, low
        elif index == 2:
            red, green, blue = low, value, rises
        elif index == 3:
            red, green, blue = low, falls, value
        elif index == 4:
            red, green, blue = rises, low, value
        else:
            red, green, blue = value, low, falls
        turned[0, place] = np.uint8(red * _BYTE)
        turned[1, place] = np.uint8(green * _BYTE)
        turned[2, place] = np.uint8(blue * _BYTE)


@compiled()
def _bounded(number: np.float32) -> np.float32:
    return min(max(number, _ZERO), _ONE)
