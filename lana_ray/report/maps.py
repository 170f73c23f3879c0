"""Maps over layers, as grids of cells, and captioned pictures of architectures, costs and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, PowerNorm, SymLogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from lana_ray.ids import CostId, family_of, read_label
from lana_ray.report.artifacts import LATENCY, LabelledTable
from lana_ray.report.canvas import ABSENT, FILLS, KEPT, REMOVED, picture
from lana_ray.report.numbers import number
from lana_ray.report.parts import Picture
from lana_ray.run_dir.summary import Result
from lana_ray.run_dir.tables import ProfileRow, ScoreRow

Floats = NDArray[np.float64]

_BAND = 14  # layers in a row of cells; further layers form another band below
_CELL = (0.76, 0.6)  # inches
_GAP = 0.3  # gap between bands, in heights of a cell
_LETTERS = 10  # per line of a cell
_WORDED = 18  # maximum number of layers at which cells contain numbers
_ROWS = 40  # maximum number of operations in a picture
_NOISE = 0.01  # nats, below which colours are linear in the score


def architectures_picture(results: Sequence[Result]) -> Picture | None:
    if not results:
        return None
    students = {
        f"{row.target}, {row.budget}": {one.layer: one.op for one in read_label(row.architecture)}
        for row in results
    }
    return Picture(
        title="Chosen architectures",
        svg=architecture_map(students),
        caption="One row per target and budget, one column per layer in the order they run.",
    )


def costs_picture(of: CostId, labelled: LabelledTable) -> Picture:
    """A cost table of a target; the layers' own operation first, then the operations that save most."""
    costs = labelled.table.costs
    cells = (
        (one.op, i, cost)
        for i, (ids, of_layer) in enumerate(zip(labelled.ids, costs, strict=True))
        for one, cost in zip(ids, of_layer, strict=True)
    )
    values = _by_operation(len(costs), cells)
    own_op, own_costs = labelled.ids[0][0].op, np.array([of_layer[0] for of_layer in costs])
    saved = {op: float(np.nanmedian(own_costs - row)) for op, row in values.items()}
    ranked = sorted(values, key=lambda op: (op != own_op, -saved[op], op))
    shown = ranked[:_ROWS]
    some = f" The first {len(shown)} operations of {len(ranked)}." if ranked != shown else ""
    return Picture(
        title="Cost table" if of.cost == LATENCY else f"Cost table of {of.cost}",
        svg=cost_map(labelled.layers, shown, np.stack([values[op] for op in shown]), of),
        caption=f"{of.cost} of each candidate in the network, fitted to all measured networks; the rest of "
        f"it adds {of.written(labelled.table.rest)}. The first row shows the teacher's own layers; the "
        f"operations that save most follow. Empty: the layer has no such candidate.{some}",
    )


def profile_picture(rows: Sequence[ProfileRow]) -> Picture:
    """What every layer of the teacher and of the students takes."""
    took = {(row.network, row.layer): row.ms for row in rows}
    networks = list(dict.fromkeys(row.network for row in rows))
    layers = list(dict.fromkeys(row.layer for row in rows))
    values = np.array([[took[network, layer] for layer in layers] for network in networks])
    return Picture(
        title="Where the time goes",
        svg=profile_map([layer or "rest" for layer in layers], networks, values),
        caption="What each layer of the teacher and of the student for each budget takes in place, by the "
        "runtime's profile. Profiling slows calls, so each row is scaled to the measured latency. The rest "
        "is outside of all layers: stem, head and what the runtime adds.",
    )


def scores_picture(scores: Sequence[ScoreRow]) -> Picture | None:
    if not scores:
        return None
    layers = [name for _, name in sorted({(row.layer, row.name) for row in scores})]
    cells = (
        (row.op, row.layer, math.inf if row.left_out == "diverged" else row.score)
        for row in scores
        if row.left_out in (None, "diverged")
    )
    values = _by_operation(len(layers), cells)
    ranked = sorted(values, key=lambda op: (float(np.nanmedian(values[op])), op))
    shown = ranked[:_ROWS]
    some = f" The {len(shown)} operations with the lowest median of {len(ranked)}." if ranked != shown else ""
    return Picture(
        title="Scores",
        svg=score_map(layers, shown, np.stack([values[op] for op in shown])),
        caption="The change of the divergence from the teacher’s outputs (or of the loss, see score.by) on "
        "the score split when one candidate alone replaces its layer. Lower is better, 0 is the teacher. "
        "Grey: the layer has no such candidate, or its training was skipped or stopped because it is too "
        f"slow or worse than others.{some}",
    )


def _by_operation(layers: int, cells: Iterable[tuple[str, int, float | None]]) -> dict[str, Floats]:
    """Cells (operation, layer, value) as one row of all layers per operation; NaN where there is no cell."""
    rows: dict[str, Floats] = {}
    for op, layer, value in cells:
        rows.setdefault(op, np.full(layers, np.nan))[layer] = value
    return rows


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
    meanings = {"teacher": "teacher's own layer", "identity": "identity (layer removed)"}
    for name, colour in colours.items():
        label = meanings.get(name, name)
        axes.add_patch(Rectangle((0, 0), 0, 0, facecolor=colour, edgecolor="#777777", label=label))
    width = max(map(len, bands))
    axes.set(xlim=(0, width), ylim=(y - _GAP, 0))
    axes.set_axis_off()
    _resize(axes, _CELL[0] * width + 0.085 * max(map(len, students)) + 0.2, _CELL[1] * y + 0.6)


@picture
def score_map(axes: Axes, layers: Sequence[str], ops: Sequence[str], scores: Floats) -> None:
    """Scores by operation (a row each) and layer (a column each); cells without a candidate stay grey.

    Args:
        scores: shape [ops, layers], in nats; NaN without a candidate, inf if it diverged.
    """
    top = max(float(scores[np.isfinite(scores)].max(initial=0)), 10 * _NOISE)
    ticks = [t for t in (0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if t <= top]
    bar = _heat(axes, layers, ops, scores, SymLogNorm(_NOISE, vmin=0, vmax=top), _score)
    bar.set_ticks(ticks)
    bar.set_label("score (nats)")


@picture
def profile_map(axes: Axes, layers: Sequence[str], networks: Sequence[str], values: Floats) -> None:
    """Milliseconds by network (a row each) and layer (a column each), shape [networks, layers]."""
    factor, unit = (1e3, "µs") if values.max() < 1 else (1.0, "ms")
    norm = PowerNorm(0.5, vmin=0, vmax=float(values.max()) * factor)
    bar = _heat(axes, layers, networks, values * factor, norm, _cost)
    bar.set_label(f"time in place ({unit})")


@picture
def cost_map(axes: Axes, layers: Sequence[str], ops: Sequence[str], costs: Floats, of: CostId) -> None:
    """Costs by operation (a row each) and layer (a column each).

    Args:
        ops: the layers' own operation first. The scale ends at twice the cost of the slowest layer, since
            slower candidates are useless and would make the rest one colour.
        costs: shape [ops, layers], in the cost's unit; NaN without a candidate, inf if it does not run.
    """
    most = float(np.nanmax(costs[0]))
    factor, unit = 1.0, of.unit
    if unit == "ms" and most < 1:
        factor, unit = 1e3, "µs"
    top = 2 * most * factor or 1.0
    ticks = [t for t in MaxNLocator(5).tick_values(0, top) if t <= top]
    norm = PowerNorm(0.5, vmin=0, vmax=top)  # cheap ones still differ if one is expensive
    bar = _heat(axes, layers, ops, costs * factor, norm, _cost)
    bar.set_ticks(ticks)
    bar.set_label(f"cost in place ({unit})")


def _heat(
    axes: Axes,
    layers: Sequence[str],
    ops: Sequence[str],
    values: Floats,
    norm: Normalize,
    word: Callable[[float], str],
) -> Colorbar:
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
    width = (0.46 if worded else 0.235) * len(layers)
    _resize(axes, width + 0.08 * max(map(len, ops)) + 1.1, max(0.25 * len(ops) + 1, 2.2))
    beyond = "max" if np.any(values > norm.vmax) else "neither"
    tick = FuncFormatter(lambda t, _: f"{t:g}")
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, format=tick, extend=beyond)
    bar.minorticks_off()
    return bar


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


def _resize(axes: Axes, width: float, height: float) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(width, height)
