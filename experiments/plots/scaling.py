"""Throughput against devices, as estimated by experiments/scaling.py."""

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.plots.common import COLORS


def draw(rows: list[dict], paper_batch: int) -> Figure:
    """Draw v5e's images per second: fixed and growing batch, columns together and apart."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in rows if row["topology"].startswith("v5e")]
    for columns, color in zip((1, 2), COLORS, strict=False):
        for fixed, style in ((True, "o--"), (False, "s-")):
            line = [
                row
                for row in rows
                if row["mesh"][1] == columns and (row["global_batch"] == paper_batch) == fixed
            ]
            kept = f"global batch of {paper_batch}" if fixed else "batch grows with the devices"
            where = "both columns on each device" if columns == 1 else "a column on each device"
            devices, rates = [row["devices"] for row in line], [row["images_per_second"] for row in line]
            axes.plot(devices, rates, style, color=color, label=f"{where}, {kept}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    ticks = sorted({row["devices"] for row in rows})
    axes.set_xticks(ticks, ticks)
    axes.set_xlabel("devices (TPU v5e)")
    axes.set_ylabel("images per second, the compiler's estimate")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    return figure
