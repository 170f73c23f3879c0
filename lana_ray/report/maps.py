"""Maps over layers, as grids of cells; every function returns SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm, SymLogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from lana_ray.costs.registry import METERS
from lana_ray.ids import CostId, family_of
from lana_ray.report.canvas import ABSENT, FILLS, KEPT, REMOVED, picture
from lana_ray.report.numbers import number

Floats = NDArray[np.float64]

_BAND = 14  # layers in a row of cells; further layers form another band below
_CELL = (0.76, 0.6)  # inches
_GAP = 0.3  # gap between bands, in heights of a cell
_LETTERS = 10  # per line of a cell
_WORDED = 18  # maximum number of layers at which cells contain numbers
_NOISE = 0.01  # nats, below which colours are linear in the score


@picture
def architecture_map(axes: Axes, students: Mapping[str, Mapping[str, str]]) -> None:
    """Operations by student (a row each) and layer (a column each), coloured by family.

    Args:
        students: layer name -> operation name, by name of the row; all have the same layers, in order.
    """
    layers = list(next(iter(students.values())))
    bands = np.array_split(np.array(layers), math.ceil(len(layers) / _BAND))
    colours = _colours(op for row in students.values() for op in row.values())
    y = 0.0
    for band in bands:
        for x, layer in enumerate(band):
            _write(axes, x + 0.5, y + 0.28, layer)
        y += 0.5
        for name, row in students.items():
            axes.text(-0.12, y + 0.5, name, ha="right", va="center", fontsize=8.5)
            for x, layer in enumerate(band):
                colour = colours[family_of(row[layer])]
                axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
                _write(axes, x + 0.5, y + 0.5, _wrapped(row[layer]))
            y += 1
        y += _GAP
    for name, colour in colours.items():
        axes.add_patch(Rectangle((0, 0), 0, 0, facecolor=colour, edgecolor="#777777", label=_meaning(name)))
    _bare(axes, max(map(len, bands)), y - _GAP)
    names = 0.085 * max(map(len, students))
    _resize(axes, _CELL[0] * max(map(len, bands)) + names + 0.2, _CELL[1] * y + 0.6)


@picture
def score_map(axes: Axes, layers: Sequence[str], ops: Sequence[str], scores: Floats) -> None:
    """Scores by operation (a row each) and layer (a column each); cells without a candidate stay grey.

    Args:
        scores: shape [ops, layers], in nats; NaN without a candidate, inf if it diverged.
    """
    top = max(float(scores[np.isfinite(scores)].max(initial=0)), 10 * _NOISE)
    norm = SymLogNorm(_NOISE, vmin=0, vmax=top)
    ticks = [t for t in (0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if t <= top]
    _heat(axes, layers, ops, scores, norm, ticks, "score (nats)", _score)


@picture
def cost_map(axes: Axes, layers: Sequence[str], ops: Sequence[str], costs: Floats, of: CostId) -> None:
    """Costs by operation (a row each) and layer (a column each).

    Args:
        ops: the layers' own operation first. The scale ends at twice the cost of the slowest layer, since
            slower candidates are useless and would make the rest one colour.
        costs: shape [ops, layers], in the cost's unit; NaN without a candidate, inf if it does not run.
    """
    most = float(np.nanmax(costs[0]))
    scale, unit = 1.0, METERS[of.cost].unit.partition(" ")[0]
    if unit == "ms" and most < 1:
        scale, unit = 1e3, "µs"
    top = 2 * most * scale or 1.0
    norm = PowerNorm(0.5, vmin=0, vmax=top)  # cheap ones still differ if one is expensive
    ticks = [t for t in MaxNLocator(5).tick_values(0, top) if t <= top]
    _heat(axes, layers, ops, costs * scale, norm, ticks, f"cost in place ({unit})", _cost)


def _heat(
    axes: Axes,
    layers: Sequence[str],
    ops: Sequence[str],
    values: Floats,
    norm: Normalize,
    ticks: Sequence[float],
    label: str,
    word: Callable[[float], str],
) -> None:
    """Draws a heat map (darker is more), with numbers if there is room; values above the scale are clipped.

    Args:
        word: formats the number in a cell.
    """
    assert norm.vmax is not None
    colours = matplotlib.colormaps["cividis_r"].with_extremes(bad=ABSENT)
    shown = np.where(np.isposinf(values), norm.vmax, values)
    image = axes.imshow(np.ma.masked_invalid(shown), cmap=colours, norm=norm, aspect="auto")
    worded = len(layers) <= _WORDED
    if worded:
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                ink = "white" if norm(min(value, norm.vmax)) > 0.55 else "black"
                _write(axes, x, y, word(value), ink)
    axes.grid(False)
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
    axes.set_yticks(range(len(ops)), ops, fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    beyond = "max" if np.any(values > norm.vmax) else "neither"
    tick = FuncFormatter(lambda t, _: f"{t:g}")
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, ticks=ticks, format=tick, extend=beyond)
    bar.set_label(label)
    bar.minorticks_off()
    width = (0.46 if worded else 0.235) * len(layers)
    _resize(axes, width + 0.08 * max(map(len, ops)) + 1.1, max(0.25 * len(ops) + 1, 2.2))


def _write(axes: Axes, x: float, y: float, text: str, ink: str = "black") -> None:
    # The text always lies within the axes, so their layout need not measure it.
    axes.text(x, y, text, ha="center", va="center", fontsize=7.4, color=ink, in_layout=False)


def _colours(ops: Iterable[str]) -> dict[str, str]:
    """The fill of every family, the teacher's own layer and identity first."""
    families = {family_of(op) for op in ops}
    plain = {"teacher": KEPT, "identity": REMOVED}
    others = sorted(families - set(plain))
    return {name: fill for name, fill in plain.items() if name in families} | {
        name: FILLS[i % len(FILLS)] for i, name in enumerate(others)
    }


def _meaning(name: str) -> str:
    return {"teacher": "teacher's own layer", "identity": "identity (layer removed)"}.get(name, name)


def _wrapped(op: str) -> str:
    """An operation's name, broken into short lines: its family, then its parameters."""
    name = family_of(op)
    lines: list[str] = []
    for words in (name, op[len(name) + 1 :]):
        line = ""
        for word in words.split("_"):
            if line and len(line) + 1 + len(word) > _LETTERS:
                lines.append(f"{line}_")
                line = word
            else:
                line = f"{line}_{word}" if line else word
        lines.append(line)
    return "\n".join(filter(None, lines))


def _score(value: float) -> str:
    if math.isinf(value):
        return "div."
    return f"{round(value, 2) + 0.0:.2f}" if abs(value) < 10 else number(value)  # no minus before zero


def _cost(value: float) -> str:
    if math.isinf(value):
        return "fails"
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _bare(axes: Axes, width: float, height: float) -> None:
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()


def _resize(axes: Axes, width: float, height: float) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(width, height)
