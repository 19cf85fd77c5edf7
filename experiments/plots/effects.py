"""Effects of a sweep's variants."""

import math

from matplotlib.figure import Figure

from alexnet_jax.runtime.errors import InputError
from experiments.plots.common import COLORS
from experiments.sweeps import table


def draw(folder: str) -> Figure:
    """Draw the difference of each line's top-1 error from the first line's, with its standard error."""
    found = [(name[:40], 100 * x, 100 * error) for name, x, error in table.read_differences(folder)]
    if not found:
        raise InputError(f"{folder}: no line of its table has a difference from the first")
    _, changes, errors = zip(*found, strict=True)
    places = range(len(found))
    figure = Figure(figsize=(8, 0.9 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.errorbar(changes, places, xerr=errors, fmt="o", markersize=5, capsize=3, color=COLORS[0])
    axes.set_xscale("symlog", linthresh=5)  # shows tenths of a point beside the 60 of a failed training
    low, high = axes.get_xlim()
    ticks = (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50)
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xlim(min(low, -1.2), max(high, 1.2))  # so that one point is marked on either side
    labels = [f"{n}  {x:+.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}") for n, x, error in found]
    axes.set_yticks(places, labels, parse_math=False)  # a $ in a name does not start mathematics
    axes.invert_yaxis()
    axes.set_xlabel("change of the top-1 error in points, ± standard error (logarithmic beyond 5)")
    axes.grid(alpha=0.25, axis="x")
    return figure
