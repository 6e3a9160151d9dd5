"""A picture of the gradient norm over distance and training: axes, colours and their legend.

Drawn with Pillow, which TensorBoard needs anyway, so that no plotting library is loaded during
training. What the values mean is the caller's business.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Nine evenly spaced colours of matplotlib's viridis: even in brightness, readable without colour.
_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 45, 123),
        (59, 82, 139),
        (44, 114, 142),
        (33, 144, 140),
        (39, 173, 129),
        (93, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    dtype=np.float64,
)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_UNKNOWN = (225, 225, 225)
_INK = (40, 40, 40)
# TensorBoard shows pictures of several runs about 350 pixels wide: the letters must bear that.
_FONT_SIZE = 16
_LEFT, _TOP, _RIGHT, _BOTTOM = 66, 32, 134, 56
_WIDTH, _HEIGHT = 400, 240


def viridis(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours of values between 0 and 1; values beyond get the end colours, NaN a light grey.

    Shape:
        values: any; returns one more axis, of 3: red, green, blue.
    """
    known = np.nan_to_num(np.clip(values, 0, 1))
    anchors = np.linspace(0, 1, len(_VIRIDIS))
    colours = np.stack([np.interp(known, anchors, channel) for channel in _VIRIDIS.T], axis=-1)
    colours = np.where(np.isnan(values)[..., None], _UNKNOWN, colours)
    return colours.round().astype(np.uint8)


def heat_map(
    columns: Sequence[Sequence[float]],
    steps: Sequence[int],
    *,
    lowest: float,
    highest: float,
    title: str,
    legend: str = "log10 norm",
    x_label: str = "training step",
    y_label: str = "distance from the end",
) -> NDArray[np.uint8]:
    """Draw one column for each training step, distance 0 at the bottom.

    Args:
        columns: values by distance; columns may differ in length, NaN is drawn as unknown.
        steps: the training step of each column.
        lowest: value of the first colour, fixed by the caller so that pictures compare.
        highest: value of the last colour.
        title: above the picture.
        legend: name of the values, above the colour bar.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.

    Shape:
        returns ``[height, width, 3]``.

    Raises:
        ValueError: if there is nothing to draw, or the range is empty.
    """
    distances = max((len(column) for column in columns), default=0)
    if not distances or len(columns) != len(steps):
        raise ValueError(
            f"a heat map needs a step for each column and at least one value, but got "
            f"{len(columns)} columns, {len(steps)} steps and at most {distances} values a column"
        )
    if not lowest < highest:
        raise ValueError(f"the colours reach from {lowest} to {highest}: the range is empty")
    values = np.full((distances, len(columns)), np.nan)
    for x, column in enumerate(columns):
        values[: len(column), x] = column
    cells = viridis((values[::-1] - lowest) / (highest - lowest))
    plot = Image.fromarray(cells).resize((_WIDTH, _HEIGHT), Image.Resampling.NEAREST)

    picture = Image.new("RGB", (_LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM), "white")
    picture.paste(plot, (_LEFT, _TOP))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=_FONT_SIZE)
    draw.rectangle((_LEFT - 1, _TOP - 1, _LEFT + _WIDTH, _TOP + _HEIGHT), outline=_INK)
    draw.text((_LEFT, _TOP // 2), title, fill=_INK, font=font, anchor="lm")
    bottom = _TOP + _HEIGHT
    draw.text((_LEFT + _WIDTH / 2, bottom + 40), x_label, fill=_INK, font=font, anchor="mm")
    for x in _ticks(len(columns), most=6):
        centre = _LEFT + (x + 0.5) * _WIDTH / len(columns)
        draw.line((centre, bottom, centre, bottom + 4), fill=_INK)
        draw.text((centre, bottom + 16), str(steps[x]), fill=_INK, font=font, anchor="mm")
    for distance in _ticks(distances, most=8):
        centre = bottom - (distance + 0.5) * _HEIGHT / distances
        draw.line((_LEFT - 5, centre, _LEFT - 1, centre), fill=_INK)
        draw.text((_LEFT - 9, centre), str(distance), fill=_INK, font=font, anchor="rm")
    _draw_upwards(picture, y_label, font)
    _draw_legend(picture, draw, font, legend, lowest, highest)
    return np.asarray(picture)


def _ticks(count: int, *, most: int) -> range:
    """Indices below ``count`` at a round distance (1, 2 or 5 times a power of ten)."""
    spacing = 1
    while (count - 1) // spacing + 1 > most:
        leading = int(str(spacing)[0])
        spacing = spacing * 5 // 2 if leading == 2 else spacing * 2
    return range(0, count, spacing)


def _draw_upwards(picture: Image.Image, text: str, font: _Font) -> None:
    box = font.getbbox(text)
    label = Image.new("RGB", (int(box[2]) + 2, int(box[3]) + 4), "white")
    ImageDraw.Draw(label).text((1, 1), text, fill=_INK, font=font)
    label = label.transpose(Image.Transpose.ROTATE_90)
    picture.paste(label, (6, _TOP + (_HEIGHT - label.height) // 2))


def _draw_legend(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: _Font,
    legend: str,
    lowest: float,
    highest: float,
) -> None:
    left, height = _LEFT + _WIDTH + 16, _HEIGHT - 62
    top = _TOP + 26
    bar = viridis(np.linspace(1, 0, height)[:, None].repeat(16, axis=1))
    picture.paste(Image.fromarray(bar), (left, top))
    draw.rectangle((left - 1, top - 1, left + 16, top + height), outline=_INK)
    draw.text((left - 2, _TOP + 4), legend, fill=_INK, font=font, anchor="lm")
    for share in np.linspace(0, 1, 6):
        y = top + (1 - share) * (height - 1)
        value = f"{lowest + share * (highest - lowest):g}"
        text = {0.0: f"{value} or less", 1.0: f"{value} or more"}.get(float(share), value)
        draw.line((left + 17, y, left + 20, y), fill=_INK)
        draw.text((left + 24, y), text, fill=_INK, font=font, anchor="lm")
    below = _TOP + _HEIGHT - 16
    draw.rectangle((left - 1, below, left + 16, below + 16), outline=_INK, fill=_UNKNOWN)
    draw.text((left + 24, below + 8), "unknown", fill=_INK, font=font, anchor="lm")
