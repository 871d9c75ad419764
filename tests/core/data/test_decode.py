"""Every format, every kind of pixel, every kind of damage."""

import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from maskrcnn_core.data import decode
from maskrcnn_core.data.decode import decode_image, image_size
from maskrcnn_core.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
LIMIT = 1_000_000


def picture(height: int = 20, width: int = 28) -> Image.Image:
    """A mosaic whose every turn and mirror image is different."""
    tiles = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(tiles, np.ones((4, 4, 1), dtype=np.uint8)))


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **({"lossless": True} if name == "WEBP" else {}), **options)
    return buffer.getvalue()


def decoded(encoded: bytes, apply_exif: bool = False) -> np.ndarray:
    pixels = decode_image(encoded, max_pixels=LIMIT, apply_exif=apply_exif)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    return pixels.permute(1, 2, 0).numpy()


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", FORMATS)
def test_rgb_as_pillow_decodes_it(name: str) -> None:
    encoded = encode(picture(), name)
    assert np.array_equal(decoded(encoded), np.array(Image.open(io.BytesIO(encoded)).convert("RGB")))
    assert image_size(encoded, apply_exif=True) == (20, 28)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "JPEG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("RGBA", "TIFF"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("P", "BMP"),
        ("1", "PNG"),
        ("1", "TIFF"),
        ("CMYK", "TIFF"),
    ],
)
def test_other_kinds_of_pixels(mode: str, name: str) -> None:
    image = picture().convert(mode)
    encoded = encode(image, name)
    expected = Image.open(io.BytesIO(encoded)) if name == "JPEG" else image
    assert np.array_equal(decoded(encoded), np.array(expected.convert("RGB")))


def test_alpha_is_dropped_not_blended() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert (decoded(encode(image, "PNG")) == (200, 100, 50)).all()


def test_transparent_palette_is_a_palette() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 99, 199])
    encoded = encode(image, "PNG", transparency=b"\x00\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decoded(encoded) == (9, 99, 199)).all()


@pytest.mark.parametrize("fast", [True, False])
def test_cmyk_jpeg_is_inverted_as_adobe_writes_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decode, "_jpeg_decoder", lambda: None)
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decoded(encode(red, "JPEG", quality=95)).astype(int) - (255, 0, 0)).max() < 12


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    expected = [0, 0, 1, 128, 255]  # 128 / 257 = 0.498
    for name in ("PNG", "TIFF"):
        assert decoded(encode(Image.fromarray(grey), name))[0].tolist() == [[v, v, v] for v in expected]


def test_sixteen_bit_rgb_is_scaled_not_clipped() -> None:
    rows = b"\x00" + struct.pack(">6H", 0, 257 * 7, 65535, 257 * 200, 32768, 257)
    assert decoded(png(2, 1, 16, 2, rows)).tolist() == [[[0, 7, 255], [200, 128, 1]]]


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_of_unknown_range_are_unsupported(mode: str) -> None:
    with pytest.raises(ImageError, match="expected 8 or 16 bits") as caught:
        decoded(encode(picture().convert(mode), "TIFF"))
    assert caught.value.status == "unsupported"


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0))]
    for name in ("GIF", "WEBP", "PNG"):
        encoded = encode(frames[0], name, save_all=True, append_images=frames[1:])
        assert (decoded(encoded) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(picture(), name, exif=exif)
    plain = decoded(encode(picture(), name))
    turned = np.array(ImageOps.exif_transpose(_with_orientation(plain, orientation)))
    assert np.array_equal(decoded(encoded, apply_exif=False), plain)
    assert np.array_equal(decoded(encoded, apply_exif=True), turned)
    assert image_size(encoded, apply_exif=False) == plain.shape[:2]
    assert image_size(encoded, apply_exif=True) == turned.shape[:2]


def _with_orientation(pixels: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return image


@pytest.mark.parametrize("exif", [b"", b"II*\x00", b"II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08\xff\xff"])
def test_damaged_exif_means_no_turn(exif: bytes) -> None:
    encoded = encode(picture(), "JPEG", exif=b"Exif\x00\x00" + exif)
    assert decoded(encoded, apply_exif=True).shape == (20, 28, 3)


@pytest.mark.parametrize("name", FORMATS)
def test_too_many_pixels_are_refused_by_the_header(name: str) -> None:
    encoded = encode(picture(), name)
    assert decode_image(encoded, max_pixels=20 * 28, apply_exif=False).shape == (3, 20, 28)
    with pytest.raises(ImageError, match="28 x 20 = 560 pixels, expected at most 559") as caught:
        decode_image(encoded, max_pixels=20 * 28 - 1, apply_exif=False)
    assert caught.value.status == "too_large"


def test_huge_header_is_refused_without_decoding() -> None:
    bomb = png(30_000, 30_000, 8, 2, b"")
    assert image_size(bomb, apply_exif=True) == (30_000, 30_000)
    with pytest.raises(ImageError) as caught:
        decode_image(bomb, max_pixels=178_956_970, apply_exif=True)
    assert caught.value.status == "too_large"


def test_limit_may_exceed_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in FORMATS:
        encoded = encode(picture(), name)
        if name in ("WEBP", "TIFF"):  # these readers of Pillow check by themselves
            with pytest.raises(ImageError, match="exceeds limit of 20") as caught:
                decoded(encoded)
            assert caught.value.status == "too_large"
        else:
            assert decoded(encoded).shape == (20, 28, 3)


@pytest.mark.parametrize(
    ("encoded", "status", "message"),
    [
        (b"", "unreadable", "empty"),
        (b"not an image at all", "unreadable", "not an image"),
        (b"<html><body>404</body></html>", "unreadable", "not an image"),
        (b"\xff\xd8\xff", "unreadable", "no frame header"),
        (b"\x89PNG\r\n\x1a\n", "unreadable", "no header chunk"),
        (b"GIF89a", "unreadable", "damaged GIF"),
        (b"BM", "unreadable", "damaged BMP"),
        (b"II*\x00", "unreadable", "damaged TIFF"),
        (b"RIFF\x00\x00\x00\x00WEBP", "unreadable", "damaged WEBP"),
        (b"\x00\x00\x00\x1cftypavif", "unsupported", "AVIF"),
        (b"\x00\x00\x00\x1cftypheic", "unsupported", "HEIC"),
        (b"8BPS\x00\x01", "unsupported", "PSD"),
        (b"<?xml version='1.0'?><svg/>", "unsupported", "SVG"),
        (b"%PDF-1.7", "unsupported", "PDF"),
    ],
)
def test_what_is_no_image(encoded: bytes, status: str, message: str) -> None:
    for function in (lambda: decoded(encoded), lambda: image_size(encoded, apply_exif=True)):
        with pytest.raises(ImageError, match=message) as caught:
            function()
        assert caught.value.status == status


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_file_is_an_error_not_half_a_picture(name: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decode, "_jpeg_decoder", lambda: None)
    encoded = encode(picture(), name)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError) as caught:
            decoded(encoded[: int(share * len(encoded))])
        assert caught.value.status == "unreadable"


@pytest.mark.parametrize("fast", [True, False])
def test_jpeg_of_both_decoders(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decode, "_jpeg_decoder", lambda: None)
    encoded = encode(picture(), "JPEG")
    assert np.array_equal(decoded(encoded), np.array(Image.open(io.BytesIO(encoded))))


def test_twelve_bit_jpeg_is_unsupported() -> None:
    encoded = bytearray(encode(picture(), "JPEG"))
    encoded[encoded.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageError, match="12 bits") as caught:
        decoded(bytes(encoded))
    assert caught.value.status == "unsupported"


_FUZZ = """
import pickle, sys, warnings
import numpy as np
from maskrcnn_core.data.decode import decode_image, image_size
from maskrcnn_core.errors import ImageError
warnings.simplefilter("error")
rng = np.random.default_rng(0)
for encoded in pickle.load(sys.stdin.buffer):
    failed = 0
    for _ in range(200):
        damaged = bytearray(encoded)
        for place in rng.integers(0, len(encoded), 3):
            damaged[place] = rng.integers(0, 256)
        for read, limits in ((image_size, {}), (decode_image, {"max_pixels": 10**6})):
            try:
                read(bytes(damaged), apply_exif=True, **limits)
            except ImageError as error:
                assert "\\n" not in str(error)
                failed += 1
    print(failed, end=" ")
"""


def test_random_damage_is_an_image_error_or_a_picture() -> None:
    """In a process of its own: a decoder that crashes must fail this test, not end the test run."""
    ran = subprocess.run(
        [sys.executable, "-c", _FUZZ],
        input=pickle.dumps([encode(picture(), name) for name in FORMATS]),
        capture_output=True,
        cwd=Path(__file__).resolve().parents[3],
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert all(int(failed) > 0 for failed in ran.stdout.split())
    assert len(ran.stdout.split()) == len(FORMATS)


def test_real_images_as_pillow_decodes_them(shared_data: Path) -> None:
    files = [
        *sorted((shared_data / "coco/images").iterdir())[:5],
        *sorted((shared_data / "nuclei/images").iterdir())[:5],
    ]
    for file in files:
        encoded = file.read_bytes()
        pixels = decode_image(encoded, max_pixels=10**8, apply_exif=False).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, np.array(Image.open(file).convert("RGB")))
        assert image_size(encoded, apply_exif=False) == pixels.shape[:2]
