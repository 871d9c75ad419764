"""Baseline files whose components stand in scans of their own, as cameras and `jpegtran -scans` write them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.errors import ImageError

HEIGHT, WIDTH = 24, 40


def grey_jpeg(plane: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def scans_of(picture: np.ndarray) -> tuple[bytes, list[bytes]]:
    """What stands before the scans, and the three scans: each is a grey file's, since all have the same tables."""
    planes = np.asarray(Image.fromarray(picture).convert("YCbCr"))
    greys = [grey_jpeg(np.ascontiguousarray(planes[..., index])) for index in range(3)]
    first = greys[0]
    frame, scan = first.index(b"\xff\xc0"), first.index(b"\xff\xda")
    body = struct.pack(">BHHB", 8, *picture.shape[:2], 3) + b"".join(bytes((n, 0x11, 0)) for n in (1, 2, 3))
    tables = first[frame + 2 + int.from_bytes(first[frame + 2 : frame + 4], "big") : scan]
    head = first[:frame] + segment(0xC0, body) + tables
    data = [grey[grey.index(b"\xff\xda") + 2 + 8 : -2] for grey in greys]
    return head, [segment(0xDA, bytes((1, n, 0, 0, 63, 0))) + some for n, some in zip((1, 2, 3), data, strict=True)]


def colorful(corner: tuple[int, int, int] | None = None) -> np.ndarray:
    blocks = np.random.default_rng(1).integers(30, 220, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    if corner is not None:
        picture[-8:, -8:] = corner
    return picture


def decoded(content: bytes) -> np.ndarray:
    return decode_image(content, max_pixels=10_000, apply_exif=False).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("corner", [None, (128, 128, 128)])
@pytest.mark.parametrize("end", [b"\xff\xd9", b""])
def test_every_scan_counts_with_and_without_an_end_mark(corner: tuple[int, int, int] | None, end: bytes) -> None:
    """A corner in the grey of no data does not make a sound picture one that is cut."""
    picture = colorful(corner)
    head, scans = scans_of(picture)
    content = head + b"".join(scans)
    found = decoded(content + end)
    assert (found == np.asarray(Image.open(io.BytesIO(content + b"\xff\xd9")))).all()
    assert np.abs(found.astype(int) - picture).mean() < 6


@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("end", [b"\xff\xd9", b""])
def test_a_missing_component_is_not_made_up(left: int, end: bytes) -> None:
    head, scans = scans_of(colorful())
    with pytest.raises(ImageError, match="one of its components is missing"):
        decoded(head + b"".join(scans[:left]) + end)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_last_scan_that_is_cut_is_noticed_without_an_end_mark(share: float) -> None:
    head, scans = scans_of(colorful())
    last = scans[-1][: 10 + int(share * (len(scans[-1]) - 10))]
    with pytest.raises(ImageError):
        decoded(head + b"".join(scans[:2]) + last)
