"""Contact sheets: pairs of pictures side by side, with captions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from maskrcnn_core.drawing.lettering import fitting, font_of
from maskrcnn_core.drawing.objects import Pixels

_PAPER, _INK, _FAINT = (250, 250, 250), (28, 28, 32), (120, 120, 128)
_MARGIN, _GAP = 18, 8  # pixels


def contact_sheet(
    rows: Sequence[tuple[Pixels, Pixels, str]],
    *,
    columns: int = 1,
    cell: int = 420,
    headings: tuple[str, str] = ("ground truth", "detections"),
) -> Pixels:
    """Pairs of pictures side by side, with captions, on one sheet.

    Args:
        rows: left picture, right picture ([H, W, 3] uint8), caption. Draw with `scale=fit_scale(image, cell)` to fill
            the cells; larger pictures are shrunk.
        columns: pairs side by side.
        cell: longest side of a picture on the sheet, pixels.
        headings: above the left and the right pictures.

    Returns:
        [H, W, 3] uint8.
    """
    if columns < 1:
        raise ValueError(f"contact sheet, columns: got {columns}, expected 1 or more")
    shown = [(_shrunk(left, cell), _shrunk(right, cell), caption) for left, right, caption in rows]
    lines = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    letters = max(11, cell // 30)
    text_height = round(1.7 * letters)
    heights = [max(max(left.height, right.height) for left, right, _ in line) + text_height + _MARGIN for line in lines]
    pair_width = 2 * cell + _GAP
    sheet_width = _MARGIN + columns * (pair_width + 2 * _MARGIN) - _MARGIN
    top = _MARGIN + round(1.4 * text_height)
    sheet = Image.new("RGB", (sheet_width, top + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column in range(min(columns, max(1, len(shown)))):
        x = _MARGIN + column * (pair_width + 2 * _MARGIN)
        for offset, heading in ((0, headings[0]), (cell + _GAP, headings[1])):
            bold = font_of(round(1.15 * letters), bold=True)
            draw.text((x + offset, _MARGIN - 4), fitting(heading, bold, cell), fill=_INK, font=bold)
    for line, height in zip(lines, heights, strict=True):
        for column, (left, right, caption) in enumerate(line):
            x = _MARGIN + column * (pair_width + 2 * _MARGIN)
            sheet.paste(left, (x, top))
            sheet.paste(right, (x + cell + _GAP, top))
            below = top + max(left.height, right.height) + 4
            draw.text((x, below), fitting(caption, font_of(letters), pair_width), fill=_FAINT, font=font_of(letters))
        top += height
    return np.asarray(sheet)


def _shrunk(image: Pixels, cell: int) -> Image.Image:
    picture = Image.fromarray(image)
    picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return picture
