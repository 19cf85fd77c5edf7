"""Learning curves of any runs."""

import itertools

from matplotlib.figure import Figure

from alexnet_jax.workdirs.metrics import read_rows
from experiments.plots.common import COLORS, MARKERS, STYLES
from experiments.plots.runs import short_names

WIDTH = 10  # inches


def draw(workdirs: list[str]) -> Figure:
    """Draw validation errors, and the losses of training and validation, against epochs."""
    names = short_names(workdirs)
    longest = 0.5 + 0.1 * max(map(len, names))  # inches of the legend's longest entry, about
    keys = min(3, max(1, int(WIDTH / longest)))  # entries per line of the legend, below both axes
    figure = Figure(figsize=(WIDTH, 4.2 + 0.2 * -(-len(workdirs) // keys)), layout="constrained")
    errors, losses = figure.subplots(1, 2)
    for number, (workdir, label) in enumerate(zip(workdirs, names, strict=True)):
        rows, color = read_rows(workdir), COLORS[number % len(COLORS)]
        marker = MARKERS[number // len(COLORS) % len(MARKERS)]
        look = {"color": color, "marker": marker, "markersize": 3, "label": label}
        epochs = [row["epoch"] for row in rows]
        for axes, names in (
            (errors, ("val_top1_error", "val_top5_error")),
            (losses, ("val_loss", "train_loss")),
        ):
            for style, name in zip(STYLES, names, strict=False):
                axes.plot(epochs, [row[name] for row in rows], linestyle=style, **look)
            for before, after in itertools.pairwise(rows):
                if after["learning_rate"] < before["learning_rate"]:
                    axes.axvline(before["epoch"], color=color, linewidth=0.8, linestyle=":", zorder=0)
    errors.set(ylabel="validation error (solid: top-1, dashed: top-5)", ylim=(0, None))
    losses.set(ylabel="loss (solid: validation, dashed: training)")
    for axes in (errors, losses):
        axes.set_xlabel("epoch (dotted: the learning rate drops)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    lines = errors.get_legend_handles_labels()[0][::2]  # each run's first
    legend = figure.legend(handles=lines, fontsize="small", loc="outside lower center", ncols=keys)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a folder's name does not start mathematics
    return figure
