"""Images as notebooks hold them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.image_source import bytes_or_pixels, decoded, source_name

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png(image: Image.Image | None = None, **settings: object) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, "PNG", **settings)
    return buffer.getvalue()


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    sources = [png(), bytearray(png()), path, str(path), path.as_uri(), PIXELS, Image.fromarray(PIXELS), tensor]
    for source in sources:
        pixels = decoded(source, max_pixels=100, apply_exif=True)
        assert pixels.dtype == torch.uint8
        assert pixels.equal(tensor), source_name(source)


def test_files_stay_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    assert bytes_or_pixels(path) == bytes_or_pixels(png()) == png()


def test_an_array_is_copied_and_may_be_a_view() -> None:
    view = PIXELS[::-1, ::2]
    pixels = bytes_or_pixels(view)
    assert isinstance(pixels, torch.Tensor)
    assert pixels.equal(torch.from_numpy(view.copy()).permute(2, 0, 1))
    pixels.zero_()
    assert PIXELS.any()


def test_pil_images_of_any_mode() -> None:
    grey = bytes_or_pixels(Image.fromarray(PIXELS[..., 0]))
    assert isinstance(grey, torch.Tensor)
    assert grey.equal(torch.from_numpy(PIXELS[..., 0].copy()).expand(3, 5, 7))


def test_only_files_are_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = png(exif=exif)
    assert decoded(content, max_pixels=100, apply_exif=True).shape == (3, 7, 5)
    assert decoded(content, max_pixels=100, apply_exif=False).shape == (3, 5, 7)
    assert decoded(Image.open(io.BytesIO(content)), max_pixels=100, apply_exif=True).shape == (3, 5, 7)


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        (PIXELS.astype(np.float32), "unsupported", r"got pixels \[5, 7, 3\] float32, expected .*array.*scale floating"),
        (PIXELS[..., 0], "unsupported", r"got pixels \[5, 7\] uint8, expected .*array \[H, W, 3\].*repeat a grey"),
        (np.zeros((5, 7, 4), np.uint8), "unsupported", r"drop an alpha channel"),
        (np.zeros((0, 7, 3), np.uint8), "unsupported", r"non-empty"),
        (np.zeros((2, 5, 7, 3), np.uint8), "unsupported", r"give several images as a list"),
        (torch.from_numpy(PIXELS), "unsupported", r"got pixels \[5, 7, 3\].*expected .*tensor \[3, H, W\].*exchange"),
        (torch.zeros(3, 5, 7), "unsupported", r"torch.float32.*scale floating"),
        (None, "unsupported", r"got a NoneType, expected an image"),
        (7, "unsupported", r"got a int, expected an image"),
        ("/nowhere/a.png", "missing", r"no such file"),
        ("file:///nowhere/a.png", "missing", r"no such file"),
        ("nonsense://a/b.png", "unreadable", r"cannot be read"),
        ("/", "unreadable", r"cannot be read"),
    ],
)
def test_what_is_no_image(source: object, status: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        bytes_or_pixels(source)
    assert caught.value.status == status


def test_limits_hold_for_files() -> None:
    with pytest.raises(ImageError, match="expected at most 34"):
        decoded(png(), max_pixels=34, apply_exif=True)


def test_names() -> None:
    assert source_name(Path("a/b.jpg")) == "a/b.jpg"
    assert source_name("s3://a/b.jpg") == "s3://a/b.jpg"
    assert source_name(b"abc") == "bytes"
    assert source_name(PIXELS) == "ndarray"
