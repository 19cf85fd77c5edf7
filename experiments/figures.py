"""python -m experiments.figures NAME --workdir=DIR [--workdir=DIR ...] [--out=FILE]

NAME is one of
    curves     errors and losses of any workdirs against epochs, the drops of the learning rate marked
    kernels    figure 3: the kernels of conv1, the first column's above the second's

Each is written as FILE.png and FILE.pdf; FILE is NAME in the first workdir if left out.
"""

import argparse
import json
import logging
import os
import sys

import numpy as np
from matplotlib.figure import Figure

from alexnet_jax import config as configuration
from alexnet_jax.errors import InputError

# Okabe and Ito's, which are told apart without colour vision; line styles do it in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", (0, (1, 1)))


def rows_of(workdir: str) -> list[dict]:
    """metrics.jsonl: one object a validation. Raises InputError where there is none that can be read."""
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        with open(path) as file:
            rows = [json.loads(line) for line in file if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the workdir of a run") from None
    if not rows:
        raise InputError(f"{path}: has no validation yet; let the run come to its first")
    return rows


def config_of(workdir: str):
    config = configuration.load(workdir)
    if config is None:
        raise InputError(f"--workdir={workdir}: has no config.json; give the workdir of a run")
    configuration.check(config)
    return config


def curves(workdirs: list[str]) -> Figure:
    """Validation errors, and the losses of training and validation, against epochs."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    errors, losses = figure.subplots(1, 2)
    for number, workdir in enumerate(workdirs):
        rows, colour = rows_of(workdir), COLOURS[number % len(COLOURS)]
        column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        epochs, label = column["epoch"], os.path.basename(os.path.normpath(workdir))
        for axes, names in (
            (errors, (("val_top1_error", "top-1"), ("val_top5_error", "top-5"))),
            (losses, (("val_loss", "validation"), ("train_loss", "training"))),
        ):
            for style, (name, what) in zip(STYLES, names, strict=False):
                axes.plot(epochs, column[name], color=colour, linestyle=style, label=f"{label}, {what}")
            for drop in np.flatnonzero(np.diff(column["learning_rate"]) < 0):
                axes.axvline(epochs[drop], color=colour, linewidth=0.8, linestyle=":", zorder=0)
    errors.set_ylabel("validation error")
    losses.set_ylabel("loss")
    errors.set_ylim(bottom=0)
    for axes in (errors, losses):
        axes.set_xlabel("epoch (dotted: the learning rate drops)")
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small")
    return figure


def kernels(workdirs: list[str]) -> Figure:
    """Figure 3: conv1's kernels of the best checkpoint, all on one scale from black to white.

    16 a row, as the released code draws them (shownet.py:187); a line between the columns of the network.
    """
    from alexnet_jax import optimizer, parallel
    from alexnet_jax.checkpoint import Checkpoints

    (workdir,) = workdirs
    config = config_of(workdir)
    mesh = parallel.make_mesh(config)
    with Checkpoints(workdir) as checkpoints:
        abstract = parallel.abstract_state(config, mesh, optimizer.make(config)).params
        step, params = checkpoints.restore_params(abstract)
    columns = np.asarray(params["conv1"]["kernel"])  # [columns, size, size, channels, maps]
    scaled = (columns - columns.min()) / (columns.max() - columns.min())
    count, size, _, channels, maps = scaled.shape
    rows = -(-maps // 16)
    figure = Figure(figsize=(8, 0.55 * rows * count + 0.6), layout="constrained")
    for column, (axes, kernels) in enumerate(
        zip(figure.subplots(count, 1, squeeze=False)[:, 0], scaled, strict=True)
    ):
        sheet = np.ones((rows * (size + 1) + 1, 16 * (size + 1) + 1, channels))
        for number, kernel in enumerate(np.moveaxis(kernels, -1, 0)):
            top, left = (1 + place * (size + 1) for place in divmod(number, 16))
            sheet[top : top + size, left : left + size] = kernel
        axes.imshow(sheet if channels == 3 else sheet[..., 0], cmap="gray", interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"column {column}" if count > 1 else "conv1", fontsize="medium", loc="left")
    figure.suptitle(f"conv1 of {config.name}, step {step}", fontsize="medium")
    return figure


FIGURES = {"curves": curves, "kernels": kernels}
ONE_WORKDIR = ("kernels",)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], add_help=False)
    parser.error = lambda message: (_ for _ in ()).throw(InputError(f"{message}; see --help"))
    parser.add_argument("name", nargs="?", choices=list(FIGURES))
    parser.add_argument("--workdir", action="append", default=[])
    parser.add_argument("--out")
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    given = parser.parse_args(arguments)
    if given.name is None:
        raise InputError(f"NAME: missing; give one of {', '.join(FIGURES)}")
    if not given.workdir or (given.name in ONE_WORKDIR and len(given.workdir) > 1):
        raise InputError(
            f"--workdir: {given.name} takes {'one' if given.name in ONE_WORKDIR else 'at least one'}"
        )
    figure = FIGURES[given.name](given.workdir)
    stem = os.path.splitext(given.out)[0] if given.out else os.path.join(given.workdir[0], given.name)
    for kind in ("png", "pdf"):
        try:
            figure.savefig(f"{stem}.{kind}", dpi=150)
        except OSError as error:
            raise InputError(
                f"--out={stem}.{kind}: cannot be written ({error.strerror}); give another"
            ) from None
        print(f"{stem}.{kind}")


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's notes on reading only
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
