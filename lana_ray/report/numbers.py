"""Numbers for people; None and NaN are a dash."""

from __future__ import annotations

import math

_DIGITS = 3


def number(value: float | None) -> str:
    """Three significant digits, but all digits before the decimal point, without an exponent."""
    if value is None or not math.isfinite(value):
        return "–"
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(_DIGITS - 1 - magnitude, 0), 6)}f}"


def spread(value: float, width: float) -> str:
    """``0.512 ± 0.013``, both with the value's number of decimals."""
    text = number(value)
    if not math.isfinite(value) or not math.isfinite(width):
        return text
    return f"{text} ± {width:.{len(text.partition('.')[2])}f}"


def percent(share: float | None, decimals: int = 1) -> str:
    """``0.9144`` as ``91.4 %``."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{decimals}f} %"


def count(value: int) -> str:
    """``3387160`` as ``3 387 160``, with narrow no-break spaces."""
    return f"{value:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """``83.2`` as ``1 min 23 s``."""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{total} s"
    return (
        f"{total // 60} min {total % 60} s" if total < 3600 else f"{total // 3600} h {total % 3600 // 60} min"
    )


def standard_error(share: float, images: int) -> float:
    """The binomial standard error of an accuracy measured on ``images``."""
    return math.sqrt(share * (1 - share) / images)
