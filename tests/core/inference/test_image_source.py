"""Images as notebooks hold them."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

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
    sources: list[Any] = [
        png(),
        bytearray(png()),
        memoryview(png()),
        path,
        str(path),
        path.as_uri(),
        PIXELS,
        Image.fromarray(PIXELS),
        tensor,
    ]
    for source in sources:
        pixels = decoded(source, max_pixels=100, apply_exif=True)
        assert pixels.dtype == torch.uint8
        assert pixels.equal(tensor), source_name(source)


def test_files_stay_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    assert bytes_or_pixels(path, apply_exif=True) == bytes_or_pixels(png(), apply_exif=True) == png()


def test_an_array_is_copied_and_may_be_a_view() -> None:
    view = PIXELS[::-1, ::2]
    pixels = bytes_or_pixels(view, apply_exif=True)
    assert isinstance(pixels, torch.Tensor)
    assert pixels.equal(torch.from_numpy(view.copy()).permute(2, 0, 1))
    pixels.zero_()
    assert PIXELS.any()


def tiff(image: Image.Image, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **settings)
    return buffer.getvalue()


def premultiplied(content: bytes) -> bytes:
    """The same TIFF with field 338, what the extra sample is, saying 1 for 2."""
    changed = content.replace(struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 338, 3, 1, 1, 0))
    assert changed != content
    return changed


GREY16 = np.linspace(0, 65535, 35).round().astype(np.uint16).reshape(5, 7)
PALETTE = Image.fromarray(PIXELS).quantize(9)


@pytest.mark.parametrize(
    ("mode", "file"),
    [
        ("1", png(Image.fromarray(PIXELS).convert("1"))),
        ("L", png(Image.fromarray(PIXELS).convert("L"))),
        ("LA", png(Image.fromarray(PIXELS).convert("LA"))),
        ("La", premultiplied(tiff(Image.fromarray(PIXELS).convert("LA")))),
        ("P", png(PALETTE)),
        ("P", png(PALETTE, transparency=b"\x00\x80")),
        ("P", png(PALETTE, transparency=3)),
        ("PA", tiff(PALETTE.convert("PA"))),
        ("RGB", png()),
        ("RGBA", png(Image.fromarray(PIXELS).convert("RGBA"))),
        ("RGB", tiff(Image.fromarray(PIXELS).convert("RGBX"))),
        ("CMYK", tiff(Image.fromarray(PIXELS).convert("CMYK"))),
        ("I;16", png(Image.fromarray(GREY16))),
        ("I;16", tiff(Image.fromarray(GREY16))),
        ("I;16", tiff(Image.fromarray(GREY16), tiffinfo={262: 0})),
        ("I;16B", tiff(Image.frombytes("I;16B", (7, 5), GREY16.astype(">u2").tobytes()))),
    ],
)
def test_a_pil_image_gives_the_pixels_of_its_file(mode: str, file: bytes) -> None:
    image = Image.open(io.BytesIO(file))
    assert image.mode == mode
    pixels = decoded(image, max_pixels=100, apply_exif=True)
    assert pixels.equal(decoded(file, max_pixels=100, apply_exif=True))
    assert len(pixels.unique()) > 1
    assert decoded(image, max_pixels=100, apply_exif=True).equal(pixels)  # and it is left as it was


@pytest.mark.parametrize("mode", ["YCbCr", "RGBX", "RGBA", "RGBa"])
def test_pil_images_of_other_modes(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("RGBA" if mode == "RGBa" else "RGB").convert(mode)
    pixels = decoded(image, max_pixels=100, apply_exif=True)
    assert (pixels.permute(1, 2, 0).int() - torch.from_numpy(PIXELS).int()).abs().max() <= 3


def test_sixteen_bits_are_scaled_whoever_opened_them() -> None:
    for image in (Image.fromarray(GREY16), Image.frombytes("I;16B", (7, 5), GREY16.astype(">u2").tobytes())):
        grey = decoded(image, max_pixels=100, apply_exif=True)[0]
        assert grey.tolist() == np.rint(GREY16 / 257).astype(int).tolist()


@pytest.mark.parametrize("mode", ["I", "F", "LAB", "HSV"])
def test_pil_images_of_unknown_range_are_unsupported_as_their_files_are(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("L" if mode in "IF" else "RGB").convert(mode if mode != "LAB" else "RGB")
    if mode == "LAB":
        image = Image.frombytes("LAB", (7, 5), PIXELS.tobytes())
    with pytest.raises(ImageError, match=f"pixels of kind '{mode}', expected 8 or 16 bits a channel") as caught:
        decoded(image, max_pixels=100, apply_exif=True)
    assert caught.value.status == "unsupported"


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pil_images_are_turned_as_their_files_are(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, name, exif=exif)
    for apply_exif in (True, False):
        of_file = decoded(buffer.getvalue(), max_pixels=100, apply_exif=apply_exif)
        assert decoded(Image.open(buffer), max_pixels=100, apply_exif=apply_exif).equal(of_file)


def test_a_pil_image_that_was_turned_already_is_not_turned_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(png(exif=exif))))
    assert decoded(turned, max_pixels=100, apply_exif=True).shape == (3, 7, 5)
    assert decoded(PIXELS, max_pixels=100, apply_exif=True).shape == (3, 5, 7)


def test_a_pil_image_that_cannot_be_loaded_is_an_image_error() -> None:
    content = png()
    with pytest.raises(ImageError, match="damaged PNG") as caught:
        decoded(Image.open(io.BytesIO(content[:-30])), max_pixels=100, apply_exif=True)
    assert caught.value.status == "unreadable"


def test_a_pil_image_whose_file_only_lacks_its_end_mark(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.kron(PIXELS, np.ones((8, 8, 1), np.uint8))).save(buffer, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue()[:-2])
    expected = decoded(buffer.getvalue(), max_pixels=9999, apply_exif=True)
    assert decoded(path, max_pixels=9999, apply_exif=True).equal(expected)
    with Image.open(path) as image:
        assert decoded(image, max_pixels=9999, apply_exif=True).equal(expected)
    with pytest.raises(ImageError, match="truncated"):
        decoded(Image.open(io.BytesIO(buffer.getvalue()[:-40])), max_pixels=9999, apply_exif=True)


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
        ("/", "unreadable", r"cannot be read: it is a folder, expected a regular file"),
        ("/dev/zero", "unreadable", r"cannot be read: it is a device, expected a regular file"),
        ("a\0b.jpg", "unreadable", r"cannot be read: no file can have this name"),
        ("\ud800.jpg", "unreadable", r"cannot be read: no file can have this name"),
        ("/" + "x" * 5000, "unreadable", r"cannot be read: .*too long"),
        ("http://a/b.jpg", "unreadable", r"http:// is not read, expected a local path, file:// or s3://"),
        ("gs://a/b.jpg", "unreadable", r"gs:// is not read"),
    ],
)
def test_what_is_no_image(source: Any, status: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        bytes_or_pixels(source, apply_exif=True)
    assert caught.value.status == status


def test_limits_hold_for_files() -> None:
    with pytest.raises(ImageError, match="expected at most 34"):
        decoded(png(), max_pixels=34, apply_exif=True)


def test_names() -> None:
    assert source_name(Path("a/b.jpg")) == "a/b.jpg"
    assert source_name("s3://a/b.jpg") == "s3://a/b.jpg"
    assert source_name(b"abc") == "bytes"
    assert source_name(PIXELS) == "ndarray"
