"""The two transforms of Winograd's convolution F(4x4, 3x3) around its products (what they are: `model/winograd.py`).

Each reads a tile once and writes it once; all between stays in registers. Letters: N images of H x W cells with C
channels, cut into T = N * ceil(H / 4) * ceil(W / 4) tiles, which are counted image by image and row by row.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from maskrcnn_core.cpu_kernels.compilation import compiled, parts
from maskrcnn_core.cpu_kernels.lanes import LANES, Lanes

TILE = 4
WINDOW = 6
POSITIONS = WINDOW * WINDOW
OUTER_POINT = 1.5
"""Windows are polynomials evaluated at 0, +-1, +- this and infinity. With 3/2 rounding errors are a quarter smaller
than with the usual 2, and all factors stay exact."""

_FLOAT_STEP = 4 * LANES


def to_windows(pixels: Tensor, first: int, windows: list[Tensor]) -> None:
    """Transform the tiles `first`, `first` + 1, ...

    Args:
        pixels: [N, H, W, C] contiguous, float32 or bfloat16, C a multiple of `LANES`; zeros lie around it.
        first: index of a tile.
        windows: written; one contiguous float32 [T', C] for each of `POSITIONS`, with one stride between them.
    """
    values, channels = _array(pixels), pixels.shape[3]
    base, stride = windows[0].data_ptr(), windows[1].data_ptr() - windows[0].data_ptr()
    around = np.zeros((WINDOW, WINDOW, channels), values.dtype)
    count, pieces = len(windows[0]), parts()
    if pieces == 1:
        _to_windows_some(values, around, first, base, stride, 0, count)
    else:
        _to_windows_all(values, around, first, base, stride, count, pieces)


def from_windows(products: list[Tensor], bias: Tensor, first: int, output: Tensor, *, relu: bool) -> None:
    """Transform products back, add the bias and cut at zero where asked for.

    Args:
        products: a contiguous float32 [T', C] for each of `POSITIONS`.
        bias: [C] float32.
        first: index of the first tile.
        output: written; [N, H, W, C] contiguous, float32 or bfloat16, C a multiple of `LANES`.
    """
    values = _array(output)
    table = np.array([part.data_ptr() for part in products], np.int64)
    low = np.float32(0.0 if relu else -np.inf)
    count, pieces = len(products[0]), parts()
    if pieces == 1:
        _from_windows_some(table, bias.data_ptr(), low, first, values, 0, count)
    else:
        _from_windows_all(table, bias.data_ptr(), low, first, values, count, pieces)


def _array(maps: Tensor) -> np.ndarray:
    """bfloat16, which numpy has not, as the integers of the same bits."""
    array: np.ndarray = (maps.view(torch.uint16) if maps.dtype == torch.bfloat16 else maps).numpy()
    return array


def _six(lanes: Lanes, x: list[ir.Value]) -> list[ir.Value]:
    """One axis of the input's transform: six samples -> a value for each point."""
    outer = OUTER_POINT**2
    near = lanes.subtract(x[4], lanes.scale(x[2], outer)), lanes.subtract(x[3], lanes.scale(x[1], outer))
    far = lanes.subtract(x[4], x[2]), lanes.scale(lanes.subtract(x[3], x[1]), OUTER_POINT)
    ends = [
        lanes.add(lanes.subtract(x[4 + i], lanes.scale(x[2 + i], 1 + outer)), lanes.scale(x[i], outer)) for i in (0, 1)
    ]
    return [ends[0], lanes.add(*near), lanes.subtract(*near), lanes.add(*far), lanes.subtract(*far), ends[1]]


def _four(lanes: Lanes, x: list[ir.Value]) -> list[ir.Value]:
    """One axis of the transform back: a value for each point -> four outputs."""
    near_sum, near_difference = lanes.add(x[1], x[2]), lanes.subtract(x[1], x[2])
    far_sum, far_difference = lanes.add(x[3], x[4]), lanes.subtract(x[3], x[4])
    return [
        lanes.add(x[0], lanes.add(near_sum, far_sum)),
        lanes.add(near_difference, lanes.scale(far_difference, OUTER_POINT)),
        lanes.add(near_sum, lanes.scale(far_sum, OUTER_POINT**2)),
        lanes.add(x[5], lanes.add(near_difference, lanes.scale(far_difference, OUTER_POINT**3))),
    ]


@intrinsic  # type: ignore[untyped-decorator]
def _forward(_: Any, like: Any, source: Any, row: Any, column: Any, target: Any, position: Any) -> Any:
    """One window of `LANES` channels: the address of its first sample and strides in bytes -> 36 values, `position`
    bytes apart. `like` is an array of the samples' type."""
    half = like.dtype == types.uint16

    def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: list[ir.Value]) -> ir.Value:
        _, source, row, column, target, position = arguments
        lanes = Lanes(builder, half=half)
        lines = [
            _six(lanes, [lanes.load(lanes.at(source, (row, i), (column, j))) for i in range(WINDOW)])
            for j in range(WINDOW)
        ]
        for i in range(WINDOW):
            for j, value in enumerate(_six(lanes, [line[i] for line in lines])):
                lanes.store_float(value, lanes.at(target, (position, WINDOW * i + j)))
        return context.get_dummy_value()

    return types.void(like, *(types.intp,) * 5), generate


@intrinsic  # type: ignore[untyped-decorator]
def _inverse(
    _: Any, like: Any, products: Any, offset: Any, bias: Any, low: Any, target: Any, row: Any, column: Any
) -> Any:
    """The 36 products of `LANES` channels, `offset` bytes into the arrays of a table -> 4 x 4 outputs at an address,
    with strides in bytes. `like` is an array of the outputs' type."""
    half = like.dtype == types.uint16

    def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: list[ir.Value]) -> ir.Value:
        _, products, offset, bias, low, target, row, column = arguments
        lanes = Lanes(builder, half=half)

        def product(position: int) -> ir.Value:
            return lanes.load_float(builder.add(lanes.entry(products, position), offset))

        lines = [_four(lanes, [product(WINDOW * i + j) for i in range(WINDOW)]) for j in range(WINDOW)]
        shift, floor = lanes.load_float(bias), lanes.spread(low)
        for i in range(TILE):
            for j, value in enumerate(_four(lanes, [line[i] for line in lines])):
                lanes.store(lanes.at_least(lanes.add(value, shift), floor), lanes.at(target, (row, i), (column, j)))
        return context.get_dummy_value()

    integers = (types.intp,) * 3
    return types.void(like, *integers, types.float32, *integers), generate


@compiled()
def _to_windows_some(pixels: Any, around: Any, first: int, windows: int, stride: int, begin: int, end: int) -> None:
    _, height, width, channels = pixels.shape
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    pixel = channels * pixels.itemsize
    border = around.copy()
    for index in range(begin, end):
        tile = first + index
        image, within = tile // (down * across), tile % (down * across)
        top, left = within // across * TILE - 1, within % across * TILE - 1
        if top >= 0 and left >= 0 and top + WINDOW <= height and left + WINDOW <= width:
            source = pixels.ctypes.data + ((image * height + top) * width + left) * pixel
            row = width * pixel
        else:
            border[:] = around
            for i in range(max(-top, 0), min(WINDOW, height - top)):
                for j in range(max(-left, 0), min(WINDOW, width - left)):
                    border[i, j] = pixels[image, top + i, left + j]
            source, row = border.ctypes.data, WINDOW * pixel
        for block in range(channels // LANES):
            shift = block * LANES * pixels.itemsize
            target = windows + index * channels * 4 + block * _FLOAT_STEP
            _forward(pixels, source + shift, row, pixel, target, stride)


@compiled(parallel=True)
def _to_windows_all(pixels: Any, around: Any, first: int, windows: int, stride: int, count: int, pieces: int) -> None:
    for piece in prange(pieces):
        begin, end = count * piece // pieces, count * (piece + 1) // pieces
        _to_windows_some(pixels, around, first, windows, stride, begin, end)


@compiled()
def _from_windows_some(products: Any, bias: int, low: float, first: int, output: Any, begin: int, end: int) -> None:
    _, height, width, channels = output.shape
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    pixel = channels * output.itemsize
    beyond = np.empty((TILE, TILE, channels), output.dtype)
    for index in range(begin, end):
        tile = first + index
        image, within = tile // (down * across), tile % (down * across)
        top, left = within // across * TILE, within % across * TILE
        whole = top + TILE <= height and left + TILE <= width
        if whole:
            target = output.ctypes.data + ((image * height + top) * width + left) * pixel
            row = width * pixel
        else:
            target, row = beyond.ctypes.data, TILE * pixel
        for block in range(channels // LANES):
            shift = block * _FLOAT_STEP
            place = target + block * LANES * output.itemsize
            _inverse(output, products.ctypes.data, index * channels * 4 + shift, bias + shift, low, place, row, pixel)
        if not whole:
            for i in range(min(TILE, height - top)):
                for j in range(min(TILE, width - left)):
                    output[image, top + i, left + j] = beyond[i, j]


@compiled(parallel=True)
def _from_windows_all(products: Any, bias: int, low: float, first: int, output: Any, count: int, pieces: int) -> None:
    for piece in prange(pieces):
        begin, end = count * piece // pieces, count * (piece + 1) // pieces
        _from_windows_some(products, bias, low, first, output, begin, end)
