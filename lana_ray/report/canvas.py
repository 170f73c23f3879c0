"""The style of all pictures: colours that colour-blind readers can tell apart, and SVG as text."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, LogFormatterMathtext

P = ParamSpec("P")

WIDTH, HEIGHT = 4.6, 3.5  # inches, of plots in a grid; small enough for a phone
BLUE, VERMILION, GREEN, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#8a8a8a", "#1a1a1a"  # Okabe and Ito
FILLS = ("#77aadd", "#ee8866", "#bbcc33", "#44bb99", "#99ddff", "#eedd88", "#aaaa00", "#ffaabb")
"""Paul Tol's light scheme, made for black text on cells, ordered by how well the colours differ from each
other and from grey for readers without green cones. They repeat if there are more families."""
KEPT, REMOVED, ABSENT = "#dddddd", "#ffffff", "#f4f4f4"
"""Fills of the teacher's own layer, of the identity, and of missing candidates."""
_TICKS = 6  # maximum number of steps on a horizontal axis, so that long numbers do not touch
_LETTERS_PER_INCH, _KEY = 15, 7  # of a legend; width of a key with its gaps, in letters

_STYLE = {
    "svg.fonttype": "path",  # looks the same with any fonts
    "svg.hashsalt": "lana_ray",  # the same run gives the same file
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


class _PlainLog(LogFormatterMathtext):
    """Labels the same ticks as its base class, without markup, which is switched off."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def plain_log(axis: Axis) -> None:
    """Sets plain numbers as the labels of a logarithmic axis."""
    axis.set_major_formatter(_PlainLog())
    axis.set_minor_formatter(_PlainLog())


def picture(draw: Callable[Concatenate[Axes, P], None]) -> Callable[P, str]:
    """Turns a function that draws on axes into one that returns SVG, with a legend below the axes."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        with style.context(["default", _STYLE]):
            figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
            axes = figure.add_subplot()
            draw(axes, *args, **kwargs)
            if isinstance(axes.xaxis.get_major_locator(), AutoLocator):
                axes.locator_params(axis="x", nbins=_TICKS)
            handles, labels = axes.get_legend_handles_labels()
            if handles:
                columns = max(
                    1, int(figure.get_figwidth() * _LETTERS_PER_INCH / (max(map(len, labels)) + _KEY))
                )
                figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns))
            text = io.StringIO()
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            figure.savefig(text, format="svg", metadata=nothing)
        return text.getvalue()

    return drawn
