"""A picture of one alignment: which source tokens the decoder looks at for each target token.

Drawn with Pillow in a millisecond or two. Where the alignment comes from is the caller's business.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from seq2seq.diagnostics.heat_map import viridis

_INK = (40, 40, 40)
_MARGIN, _GAP, _LINE = 10, 6, 22
_FONT_SIZE = 15
_CELL, _SMALL_CELL = 30, 20
_BAR, _LEGEND = 14, 76
_MOST_TOKENS = 60
_MOST_CHARACTERS = 18


def draw_alignment(
    weights: NDArray[np.float64],
    *,
    source: Sequence[str],
    target: Sequence[str],
    title: str,
    caption: str = "",
) -> NDArray[np.uint8]:
    """Draw target tokens as rows and source tokens as columns; colours reach from 0 to 1.

    Beyond 60 tokens a side is cut, which the picture says. Characters that the font DejaVu Sans
    lacks, such as Chinese ones, are drawn as boxes.

    Args:
        weights: attention of each target token to each source token.
        source: names of the columns.
        target: names of the rows.
        title: above the picture.
        caption: below it.

    Shape:
        weights: ``[target, source]``; returns ``[height, width, 3]``.

    Raises:
        ValueError: if names and weights differ in number, or there are none.
    """
    if weights.shape != (len(target), len(source)) or not weights.size:
        raise ValueError(
            f"an alignment of {len(target)} target and {len(source)} source tokens needs weights "
            f"[{len(target)}, {len(source)}], at least one, but they are {list(weights.shape)}"
        )
    longest = max(len(source), len(target))
    if longest > _MOST_TOKENS:
        title += f" (first {_MOST_TOKENS} of {longest} tokens)"
    source, target = ([_short(name) for name in side[:_MOST_TOKENS]] for side in (source, target))
    cells = viridis(weights[: len(target), : len(source)])
    size = _CELL if longest <= 20 else _SMALL_CELL

    font = _font()
    left = _MARGIN + max(_width(name) for name in target) + _GAP
    top = _MARGIN + _LINE + _GAP + max(_width(name) for name in source) + _GAP
    right, bottom = left + size * len(source), top + size * len(target)
    width = max(right + _LEGEND, _width(title) + 2 * _MARGIN)
    picture = Image.new("RGB", (width, bottom + _GAP + _LINE + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    for column, name in enumerate(source):
        label = _upwards(name)
        x = left + size * column + (size - label.width) // 2
        picture.paste(label, (x, top - _GAP - label.height))
    for row, name in enumerate(target):
        y = top + size * row
        draw.text((left - _GAP, y + size / 2), name, fill=_INK, font=font, anchor="rm")
        for column in range(len(source)):
            x = left + size * column
            colour = tuple(int(channel) for channel in cells[row, column])
            draw.rectangle((x, y, x + size - 2, y + size - 2), fill=colour)
    _draw_bar(picture, draw, left=right + 20, top=top, height=bottom - top - 1)
    shown = _cut(caption, most=width - 2 * _MARGIN)
    draw.text((_MARGIN, bottom + _GAP), shown, fill=_INK, font=font)
    return np.asarray(picture)


def _draw_bar(
    picture: Image.Image, draw: ImageDraw.ImageDraw, *, left: int, top: int, height: int
) -> None:
    bar = viridis(np.linspace(1, 0, height)[:, None].repeat(_BAR, axis=1))
    picture.paste(Image.fromarray(bar), (left, top))
    for share in (1.0, 0.5, 0.0) if height >= 3 * _LINE else (1.0, 0.0):
        y = top + (1 - share) * (height - 1)
        draw.line((left + _BAR, y, left + _BAR + 3, y), fill=_INK)
        anchor = {1.0: "lt", 0.0: "lb"}.get(share, "lm")
        draw.text((left + _BAR + 7, y), f"{share:g}", fill=_INK, font=_font(), anchor=anchor)


@cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib  # its font has the accents that Pillow's own lacks

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size=_FONT_SIZE)


def _short(name: str) -> str:
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"


def _width(text: str) -> int:
    return int(_font().getlength(text)) + 1


def _cut(text: str, *, most: int) -> str:
    while text and _width(text) > most:
        text = f"{text.removesuffix('…')[:-1]}…" if len(text) > 1 else ""
    return text


def _upwards(text: str) -> Image.Image:
    label = Image.new("RGB", (_width(text), _LINE - 2), "white")
    ImageDraw.Draw(label).text((0, (_LINE - 2) / 2), text, fill=_INK, font=_font(), anchor="lm")
    return label.transpose(Image.Transpose.ROTATE_90)
