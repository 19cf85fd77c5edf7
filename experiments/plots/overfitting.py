"""Training and validation errors of lines of experiments/sweeps/claims.py."""

from matplotlib.figure import Figure

from experiments.plots.common import COLORS, MARKERS, STYLES

LINES = ("no dropout", "no crops and flips")


def draw(curves: list[dict]) -> Figure:
    """Draw errors and losses against epochs: the baseline and one line per row, all seeds.

    `curves` are rows of curves.csv. A line without runs has no row.
    """
    names = [name for name in LINES if any(row["variant"] == name for row in curves)] or LINES[:1]
    figure = Figure(figsize=(10, 3.8 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for name, (errors, losses) in zip(names, panels, strict=True):
        for variant, color, marker in zip(("baseline", name), COLORS, MARKERS, strict=False):
            for seed in sorted({row["seed"] for row in curves if row["variant"] == variant}):
                own = [row for row in curves if (row["variant"], row["seed"]) == (variant, seed)]
                epochs = [row["epoch"] for row in own]
                for axes, kind in ((errors, "top1_error"), (losses, "loss")):
                    for style, split in zip(STYLES, ("val", "clean_train"), strict=False):
                        label = None if seed or split != "val" else variant
                        look = {"color": color, "linestyle": style, "linewidth": 1.1, "label": label}
                        look |= {"marker": marker, "markersize": 3, "markevery": 5}
                        axes.plot(epochs, [row[f"{split}_{kind}"] for row in own], **look)
        errors.set(ylabel="top-1 error", ylim=(0, 0.9))
        losses.set(ylabel="loss", ylim=(0, 2.5))
        for axes in (errors, losses):
            axes.set_xlabel("epoch (solid: validation, dashed: training)")
            axes.grid(alpha=0.25)
        errors.legend()
    return figure
