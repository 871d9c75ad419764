"""Label Studio's brush regions, read back by a slow reader of the format, bit by bit."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_core.data.segmentation import object_mask
from maskrcnn_core.export.brush import rle_brush
from tests.generated_labels import blob


def packed(mask: np.ndarray) -> list[int]:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle_brush(object_mask(encoded, *mask.shape), *mask.shape)


def unpacked(numbers: list[int]) -> list[int]:
    """The format as thi.ng's rle-pack documents it; also runs of single words, which Label Studio writes itself."""
    bits = "".join(f"{number:08b}" for number in numbers)
    place = 0

    def read(width: int) -> int:
        nonlocal place
        place += width
        return int(bits[place - width : place], 2)

    total, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < total:
        is_run = read(1)
        length = read(widths[read(2)]) + 1
        out += [read(word)] * length if is_run else [read(word) for _ in range(length)]
    assert len(bits) - place < 8
    return out


def test_a_pixel_by_hand() -> None:
    """Two pixels, the second set: 4 bytes of 0, 4 bytes of 255, each one run of length 4 (3 in 4 bits)."""
    bits = f"{8:032b}" + f"{7:05b}" + "".join(f"{width - 1:04b}" for width in (4, 8, 12, 16))
    bits += "100" + "0011" + "00000000" + "100" + "0011" + "11111111"
    bits += "0" * (-len(bits) % 8)
    assert packed(np.array([[False, True]])) == [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


@pytest.mark.parametrize("seed", range(6))
def test_masks_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = blob(rng, 50, 70)
    if seed % 2:
        mask[:, 3] = True
        mask[-1, :] = True  # to the last pixel
    pixels = np.array(unpacked(packed(mask))).reshape(50, 70, 4)
    assert (pixels == np.where(mask, 255, 0)[:, :, None]).all()


def test_long_runs_are_split() -> None:
    mask = np.zeros((300, 400), bool)
    mask[0, 0] = mask[-1, -1] = True
    for picture in (mask, ~mask, np.ones((300, 400), bool)):
        pixels = np.array(unpacked(packed(picture))).reshape(300, 400, 4)
        assert (pixels[:, :, 3] == 255).tolist() == picture.tolist()
