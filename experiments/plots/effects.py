"""Effects of a sweep's variants."""

import math
import textwrap

from matplotlib.figure import Figure

from alexnet_jax.runtime.errors import InputError
from experiments.plots.common import COLORS
from experiments.sweeps import table

PLOT_WIDTH = 5  # inches between the names on the left and the numbers on the right
LETTERS = 40  # per line of a name


def draw(folder: str) -> Figure:
    """Draw the difference of each line's top-1 error from the first line's, with its standard error."""
    found = [(name, 100 * x, 100 * error) for name, x, error in table.read_differences(folder)]
    if not found:
        raise InputError(f"{folder}: no line of its table has a difference from the first")
    names, changes, errors = zip(*found, strict=True)
    names = [textwrap.wrap(name, LETTERS) or [""] for name in names]
    numbers = [f"{x:+.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}") for _, x, error in found]
    places = range(len(found))
    row_height = 0.16 + 0.16 * max(map(len, names))
    figure = Figure(figsize=(PLOT_WIDTH, 0.9 + row_height * len(found)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.errorbar(changes, places, xerr=errors, fmt="o", markersize=5, capsize=3, color=COLORS[0])
    axes.set_xscale("symlog", linthresh=5)  # shows tenths of a point beside the 60 of a failed training
    low, high = axes.get_xlim()
    ticks = (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50)
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xlim(min(low, -1.2), max(high, 1.2))  # so that one point is marked on either side
    axes.set_ylim(len(found) - 0.5, -0.5)  # the first line on top
    # Without parse_math, because a $ in a name does not start mathematics.
    axes.set_yticks(places, ["\n".join(lines) for lines in names], parse_math=False)
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks(places, numbers, parse_math=False)
    right.tick_params(right=False)
    axes.set_xlabel("change of the top-1 error in points, ± standard error\n(logarithmic beyond 5)")
    axes.grid(alpha=0.25, axis="x")
    labels = [max(label.get_window_extent().width for label in a.get_yticklabels()) for a in (axes, right)]
    figure.set_figwidth(PLOT_WIDTH + sum(labels) / figure.dpi)
    return figure
