"""The two transforms of Winograd's convolution F(4x4, 3x3) around its products (what they are: `model/winograd.py`).

Each reads a tile once and writes it once; all between stays in registers. Letters: N images of H x W cells with C
channels, cut into T = N * ceil(H / 4) * ceil(W / 4) tiles.

Where only one or two rows of a tile lie within the map, four of an axis's six points are enough for them (F(2, 3)),
and the kernel at those points is the same but for a factor, which goes into the input's transform. Such a *short* tile
has no values at the two outer points: a map of 14 x 14 cells takes 484 products for each pair of channels, not 576.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from maskrcnn_core.kernels.cpu.compilation import as_array, compiled, run
from maskrcnn_core.kernels.cpu.vector_lanes import LANES, Lanes

TILE = 4
WINDOW = 6
POSITIONS = WINDOW * WINDOW
OUTER_POINT = 1.5
"""Windows are polynomials evaluated at 0, +-1, +- this and infinity. With 3/2 rounding errors are a quarter smaller
than with the usual 2, and all factors stay exact."""

_SHORT = 2
_OUTER = (3, 4)  # their indices among the points
_FLOAT_STEP = 4 * LANES


@dataclass(frozen=True)
class Band:
    """Some tiles, in an order in which those with values at a position are neighbours: first those that are short
    across, then whole ones, those short down, those short both ways.

    Attributes:
        tiles: [T', 4] int64 image, first row and first column of the output, and how it is short: 0, 1 across, 2 down,
            3 both ways.
        used: for each of `POSITIONS` the first and the last + 1 of the tiles that have values there.
    """

    tiles: np.ndarray
    used: tuple[tuple[int, int], ...]


@lru_cache(maxsize=64)
def band(height: int, width: int, first: int, last: int, *, shorten: bool = True) -> Band:
    """Tiles `first` to `last` - 1 of maps, counted image by image and row by row; without `shorten` all are whole."""
    down, across = -(-height // TILE), -(-width // TILE)
    index = np.arange(first, last)
    image, within = index // (down * across), index % (down * across)
    top, left = within // across * TILE, within % across * TILE
    short_down, short_across = shorten & (height - top <= _SHORT), shorten & (width - left <= _SHORT)
    rank = np.where(short_down, 2 + short_across, np.where(short_across, 0, 1))
    order = np.argsort(rank, kind="stable")
    starts = [int((rank < value).sum()) for value in range(5)]
    ranges = {
        (False, False): (starts[0], starts[4]),
        (False, True): (starts[1], starts[3]),
        (True, False): (starts[0], starts[2]),
        (True, True): (starts[1], starts[2]),
    }
    used = tuple(ranges[i in _OUTER, j in _OUTER] for i in range(WINDOW) for j in range(WINDOW))
    return Band(np.stack((image, top, left, 2 * short_down + short_across), axis=1)[order], used)


def to_windows(pixels: Tensor, chosen: Band, windows: Sequence[Tensor]) -> None:
    """Transform the tiles of a band.

    Args:
        pixels: [N, H, W, C] contiguous, float32 or bfloat16, C a multiple of `LANES`; zeros lie around it.
        windows: written where `chosen.used` says; one contiguous float32 [T', C] for each of `POSITIONS`, with one
            stride between them.
    """
    values = as_array(pixels)
    base, stride = windows[0].data_ptr(), windows[1].data_ptr() - windows[0].data_ptr()
    zeros = np.zeros(values.shape[3], values.dtype)
    arguments = values, zeros, chosen.tiles, base, stride
    run(_to_windows_some, _to_windows_all, *arguments, count=len(chosen.tiles))


def spread_to_points(gradient: Tensor, chosen: Band, windows: Sequence[Tensor]) -> None:
    """The transpose of `from_windows`, for the gradient of the kernel.

    Args:
        gradient: of the output; [N, H, W, C] contiguous, float32 or bfloat16, C a multiple of `LANES`.
        chosen: of whole tiles.
        windows: written; as of `to_windows`.
    """
    values = as_array(gradient)
    base, stride = windows[0].data_ptr(), windows[1].data_ptr() - windows[0].data_ptr()
    zeros = np.zeros(values.shape[3], values.dtype)
    run(_spread_some, _spread_all, values, zeros, chosen.tiles, base, stride, count=len(chosen.tiles))


def from_windows(products: Sequence[Tensor], bias: Tensor, chosen: Band, output: Tensor, *, relu: bool) -> None:
    """Transform products back, add the bias and cut at zero where asked for.

    Args:
        products: a contiguous float32 [U, C] for each of `POSITIONS`, of the tiles that `chosen.used` names.
        bias: [C] float32.
        output: the tiles are written; [N, H, W, C] contiguous, float32 or bfloat16, C a multiple of `LANES`.
    """
    values = as_array(output)
    row = 4 * values.shape[3]
    # Where a product of the first tile would lie.
    starts = [part.data_ptr() - row * first for part, (first, _) in zip(products, chosen.used, strict=True)]
    table, low = np.array(starts, np.int64), np.float32(0.0 if relu else -np.inf)
    arguments = table, bias.data_ptr(), low, chosen.tiles, values
    run(_from_windows_some, _from_windows_all, *arguments, count=len(chosen.tiles))


def _to_points(lanes: Lanes, x: Sequence[ir.Value]) -> list[ir.Value]:
    """One axis of the input's transform: six samples -> a value for each point; four, of a short tile -> none at the
    outer points."""
    outer = OUTER_POINT**2
    if len(x) == WINDOW - _SHORT:
        # The factors are the quotients of the two kernels' denominators.
        near = lanes.scale(x[2], 1 - outer), lanes.scale(x[1], 1 - outer)
        first, last = lanes.scale(lanes.subtract(x[0], x[2]), outer), lanes.subtract(x[3], x[1])
        return [first, lanes.add(*near), lanes.subtract(*near), None, None, last]
    near = lanes.subtract(x[4], lanes.scale(x[2], outer)), lanes.subtract(x[3], lanes.scale(x[1], outer))
    far = lanes.subtract(x[4], x[2]), lanes.scale(lanes.subtract(x[3], x[1]), OUTER_POINT)
    ends = [
        lanes.add(lanes.subtract(x[4 + i], lanes.scale(x[2 + i], 1 + outer)), lanes.scale(x[i], outer)) for i in (0, 1)
    ]
    return [ends[0], lanes.add(*near), lanes.subtract(*near), lanes.add(*far), lanes.subtract(*far), ends[1]]


def _from_points(lanes: Lanes, x: Sequence[ir.Value]) -> list[ir.Value]:
    """One axis of the transform back: a value for each point -> four outputs; none at the outer points -> two."""
    near_sum, near_difference = lanes.add(x[1], x[2]), lanes.subtract(x[1], x[2])
    if x[_OUTER[0]] is None:
        return [lanes.add(x[0], near_sum), lanes.add(near_difference, x[5])]
    far_sum, far_difference = lanes.add(x[3], x[4]), lanes.subtract(x[3], x[4])
    return [
        lanes.add(x[0], lanes.add(near_sum, far_sum)),
        lanes.add(near_difference, lanes.scale(far_difference, OUTER_POINT)),
        lanes.add(near_sum, lanes.scale(far_sum, OUTER_POINT**2)),
        lanes.add(x[5], lanes.add(near_difference, lanes.scale(far_difference, OUTER_POINT**3))),
    ]


def _spread_axis(lanes: Lanes, x: Sequence[ir.Value]) -> list[ir.Value]:
    """One axis of the transposed transform back: four gradients -> a value for each point."""
    near = lanes.add(x[0], x[2]), lanes.add(x[1], x[3])
    far = (
        lanes.add(x[0], lanes.scale(x[2], OUTER_POINT**2)),
        lanes.add(lanes.scale(x[1], OUTER_POINT), lanes.scale(x[3], OUTER_POINT**3)),
    )
    return [x[0], lanes.add(*near), lanes.subtract(*near), lanes.add(*far), lanes.subtract(*far), x[3]]


def _forward(*, short_down: bool, short_across: bool) -> Any:
    """For Numba: `LANES` channels of one window, `shift` bytes behind each of 36 addresses of samples (row by row) ->
    values at the points, `stride` bytes apart. `like` is an array of the samples' type."""
    down, across = WINDOW - _SHORT * short_down, WINDOW - _SHORT * short_across

    @intrinsic  # type: ignore[untyped-decorator]
    def transform(_: Any, like: Any, samples: Any, shift: Any, target: Any, stride: Any) -> Any:
        half = like.dtype == types.uint16

        def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: list[ir.Value]) -> ir.Value:
            _, samples, shift, target, stride = arguments
            lanes = Lanes(builder, half=half)

            def sample(i: int, j: int) -> ir.Value:
                return lanes.load(builder.add(lanes.entry(samples, WINDOW * i + j), shift))

            lines = [_to_points(lanes, [sample(i, j) for i in range(down)]) for j in range(across)]
            for i in range(WINDOW):
                if lines[0][i] is None:
                    continue
                for j, value in enumerate(_to_points(lanes, [line[i] for line in lines])):
                    if value is not None:
                        lanes.store_float(value, lanes.at(target, (stride, WINDOW * i + j)))
            return context.get_dummy_value()

        return types.void(like, *(types.intp,) * 4), generate

    return transform


@intrinsic  # type: ignore[untyped-decorator]
def _spread(_: Any, like: Any, samples: Any, shift: Any, target: Any, stride: Any) -> Any:
    """For Numba: `LANES` channels of one tile of gradients, `shift` bytes behind each of 16 addresses (row by row) ->
    36 values, `stride` bytes apart. `like` is an array of the gradients' type."""
    half = like.dtype == types.uint16

    def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: list[ir.Value]) -> ir.Value:
        _, samples, shift, target, stride = arguments
        lanes = Lanes(builder, half=half)

        def sample(i: int, j: int) -> ir.Value:
            return lanes.load(builder.add(lanes.entry(samples, TILE * i + j), shift))

        lines = [_spread_axis(lanes, [sample(i, j) for i in range(TILE)]) for j in range(TILE)]
        for i in range(WINDOW):
            for j, value in enumerate(_spread_axis(lanes, [line[i] for line in lines])):
                lanes.store_float(value, lanes.at(target, (stride, WINDOW * i + j)))
        return context.get_dummy_value()

    return types.void(like, *(types.intp,) * 4), generate


def _inverse(*, short_down: bool, short_across: bool) -> Any:
    """For Numba: `LANES` channels of one tile's products, `offset` bytes behind each of 36 addresses -> outputs,
    `shift` bytes behind each of 16 addresses (row by row). `like` is an array of the outputs' type."""

    @intrinsic  # type: ignore[untyped-decorator]
    def transform(_: Any, like: Any, products: Any, offset: Any, bias: Any, low: Any, outputs: Any, shift: Any) -> Any:
        half = like.dtype == types.uint16

        def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: list[ir.Value]) -> ir.Value:
            _, products, offset, bias, low, outputs, shift = arguments
            lanes = Lanes(builder, half=half)

            def product(i: int, j: int) -> ir.Value:
                if (short_down and i in _OUTER) or (short_across and j in _OUTER):
                    return None
                return lanes.load_float(builder.add(lanes.entry(products, WINDOW * i + j), offset))

            columns = [j for j in range(WINDOW) if not (short_across and j in _OUTER)]
            lines = {j: _from_points(lanes, [product(i, j) for i in range(WINDOW)]) for j in columns}
            constant, floor = lanes.load_float(bias), lanes.spread(low)
            for i in range(len(lines[0])):
                row = [lines[j][i] if j in lines else None for j in range(WINDOW)]
                for j, value in enumerate(_from_points(lanes, row)):
                    address = builder.add(lanes.entry(outputs, TILE * i + j), shift)
                    lanes.store(lanes.at_least(lanes.add(value, constant), floor), address)
            return context.get_dummy_value()

        return types.void(like, *(types.intp,) * 3, types.float32, *(types.intp,) * 2), generate

    return transform


_forward_whole = _forward(short_down=False, short_across=False)
_forward_across = _forward(short_down=False, short_across=True)
_forward_down = _forward(short_down=True, short_across=False)
_forward_both = _forward(short_down=True, short_across=True)
_inverse_whole = _inverse(short_down=False, short_across=False)
_inverse_across = _inverse(short_down=False, short_across=True)
_inverse_down = _inverse(short_down=True, short_across=False)
_inverse_both = _inverse(short_down=True, short_across=True)


@compiled()
def _find_cells(maps: Any, image: int, top: int, left: int, outside: Any, addresses: Any) -> None:
    """The addresses of a square of cells [side, side] of [N, H, W, C]; of a cell beyond the map, that of `outside`."""
    _, height, width, channels = maps.shape
    for i in range(addresses.shape[0]):
        for j in range(addresses.shape[1]):
            y, x = top + i, left + j
            address = maps.ctypes.data + ((image * height + y) * width + x) * channels * maps.itemsize
            inside = 0 <= y < height and 0 <= x < width
            addresses[i, j] = address if inside else outside.ctypes.data


@compiled()
def _to_windows_some(pixels: Any, zeros: Any, tiles: Any, windows: int, stride: int, begin: int, end: int) -> None:
    channels = pixels.shape[3]
    blocks, samples = channels // LANES, np.empty((WINDOW, WINDOW), np.int64)
    for index in range(begin, end):
        image, top, left = tiles[index, 0], tiles[index, 1], tiles[index, 2]
        _find_cells(pixels, image, top - 1, left - 1, zeros, samples)
        target = windows + index * channels * 4
        short = tiles[index, 3]
        for block in range(blocks):
            shift, block_target = block * LANES * pixels.itemsize, target + block * _FLOAT_STEP
            if short == 3:
                _forward_both(pixels, samples.ctypes.data, shift, block_target, stride)
            elif short == 2:
                _forward_down(pixels, samples.ctypes.data, shift, block_target, stride)
            elif short == 1:
                _forward_across(pixels, samples.ctypes.data, shift, block_target, stride)
            else:
                _forward_whole(pixels, samples.ctypes.data, shift, block_target, stride)


@compiled(parallel=True)
def _to_windows_all(pixels: Any, zeros: Any, tiles: Any, windows: int, stride: int, count: int, pieces: int) -> None:
    for piece in prange(pieces):
        begin, end = count * piece // pieces, count * (piece + 1) // pieces
        _to_windows_some(pixels, zeros, tiles, windows, stride, begin, end)


@compiled()
def _spread_some(gradient: Any, zeros: Any, tiles: Any, windows: int, stride: int, begin: int, end: int) -> None:
    channels = gradient.shape[3]
    blocks, samples = channels // LANES, np.empty((TILE, TILE), np.int64)
    for index in range(begin, end):
        image, top, left = tiles[index, 0], tiles[index, 1], tiles[index, 2]
        _find_cells(gradient, image, top, left, zeros, samples)
        target = windows + index * channels * 4
        for block in range(blocks):
            shift, block_target = block * LANES * gradient.itemsize, target + block * _FLOAT_STEP
            _spread(gradient, samples.ctypes.data, shift, block_target, stride)


@compiled(parallel=True)
def _spread_all(gradient: Any, zeros: Any, tiles: Any, windows: int, stride: int, count: int, pieces: int) -> None:
    for piece in prange(pieces):
        begin, end = count * piece // pieces, count * (piece + 1) // pieces
        _spread_some(gradient, zeros, tiles, windows, stride, begin, end)


@compiled()
def _from_windows_some(products: Any, bias: int, low: float, tiles: Any, output: Any, begin: int, end: int) -> None:
    channels = output.shape[3]
    blocks, outputs = channels // LANES, np.empty((TILE, TILE), np.int64)
    beyond = np.empty(channels, output.dtype)
    for index in range(begin, end):
        image, top, left = tiles[index, 0], tiles[index, 1], tiles[index, 2]
        _find_cells(output, image, top, left, beyond, outputs)
        short = tiles[index, 3]
        for block in range(blocks):
            offset, constant = (index * blocks + block) * _FLOAT_STEP, bias + block * _FLOAT_STEP
            table, addresses, shift = products.ctypes.data, outputs.ctypes.data, block * LANES * output.itemsize
            if short == 3:
                _inverse_both(output, table, offset, constant, low, addresses, shift)
            elif short == 2:
                _inverse_down(output, table, offset, constant, low, addresses, shift)
            elif short == 1:
                _inverse_across(output, table, offset, constant, low, addresses, shift)
            else:
                _inverse_whole(output, table, offset, constant, low, addresses, shift)


@compiled(parallel=True)
def _from_windows_all(products: Any, bias: int, low: float, tiles: Any, output: Any, count: int, pieces: int) -> None:
    for piece in prange(pieces):
        begin, end = count * piece // pieces, count * (piece + 1) // pieces
        _from_windows_some(products, bias, low, tiles, output, begin, end)
