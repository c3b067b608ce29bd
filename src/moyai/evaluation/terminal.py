"""A curve in a terminal: braille characters, each 2 dots wide and 4 high, or plain ASCII."""

import math
from collections.abc import Sequence

import numpy as np

# the bit of each dot of a braille character, by row and column (Unicode block U+2800)
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def terminal_plot(
    values: Sequence[float] | np.ndarray, width: int = 60, height: int = 10, *, ascii_only: bool = False
) -> str:
    """The values from left to right in `width` x `height` characters, their range written at the left.

    Each column of dots spans the least to the greatest of its values; values that are not finite leave gaps.
    """
    if width < 2 or height < 2:
        raise ValueError(f"a plot needs at least 2 x 2 characters, not {width} x {height}")
    y = np.asarray(values, dtype=np.float64)
    finite = y[np.isfinite(y)]
    if not len(finite):
        return "no finite values"
    low, high = float(finite.min()), float(finite.max())
    across, down = (1, 1) if ascii_only else (2, 4)
    dots = _dots(y, low, high, width * across, height * down)
    lines = [_line(dots[row * down : (row + 1) * down], ascii_only) for row in range(height)]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    room, edge = max(len(label) for label in labels.values()), "|" if ascii_only else "┤"
    return "\n".join(f"{labels.get(i, ''):>{room}} {edge}{line}".rstrip() for i, line in enumerate(lines))


def _dots(y: np.ndarray, low: float, high: float, columns: int, rows: int) -> np.ndarray:
    """Which dots are drawn: (rows, columns) bool, row 0 on top."""
    dots = np.zeros((rows, columns), dtype=bool)
    spread = high - low or 1.0
    place = (
        np.round((1 - (y - low) / spread) * (rows - 1)) if high > low else np.where(np.isfinite(y), rows // 2, np.nan)
    )
    before = None  # where the column at the left ended, to join them
    for column in range(columns):
        start = column * len(y) // columns
        part = place[start : max(start + 1, math.ceil((column + 1) * len(y) / columns))]
        seen = part[np.isfinite(part)].astype(int)
        if not len(seen):
            before = None
            continue
        first, last = int(seen.min()), int(seen.max())
        if before is not None:  # up to, not onto, the neighbour's level
            first, last = (
                min(first, before + 1 if before < first else first),
                max(last, before - 1 if before > last else last),
            )
        dots[first : last + 1, column] = True
        before = int(seen[-1])
    return dots


def _line(dots: np.ndarray, ascii_only: bool) -> str:
    """One line of characters from its rows of dots."""
    if ascii_only:
        return "".join("*" if dot else " " for dot in dots[0])
    codes = np.zeros(dots.shape[1] // 2, dtype=int)
    for row in range(4):
        for column in range(2):
            codes |= dots[row, column::2] * _BITS[row][column]
    return "".join(chr(0x2800 + code) for code in codes)
