"""python -m experiments.figures NAME --workdir=DIR [--workdir=DIR ...] [--out=FILE] [--images=0,1,2]
                              [--config.FIELD=VALUE ...]

NAME is one of
    curves     errors and losses of any workdirs against epochs, the drops of the learning rate marked
    effects    what each line of a sweep's table changes in the top-1 error of the first
    figure1    training error against epochs, ReLU and tanh, with the epochs to 25 % (section 3.1)
    figure3    the kernels of conv1, the first column's above the second's; prints how much colour each has
    figure4    the test images of --images: five most probable labels, and the six training images whose
               activations in the last hidden layer are nearest

A DIR that holds workdirs, as that of a sweep does, stands for all of them; effects takes that of a sweep.
Each figure is written as FILE.png and FILE.pdf; FILE is NAME in the first DIR if left out.
"""

import argparse
import csv
import itertools
import json
import os
import pathlib
import sys

import numpy as np
from matplotlib.figure import Figure

from alexnet_jax import config as configuration
from alexnet_jax.datasets.batches import evaluation_batches
from alexnet_jax.datasets.labels import with_labels_of
from alexnet_jax.datasets.source import open_source
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.mesh import batch_sharding
from alexnet_jax.step import make_activations
from experiments import columns

# Okabe and Ito's, which are told apart without colour vision; line styles do it in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", (0, (1, 1)))
MARKERS = ("", "o", "s", "^", "D", "v", "x", "+")  # once all colours are taken


FIELDS = {  # what is read of a validation, here and in report.py
    "step", "epoch", "learning_rate", "images_per_second",
    "train_loss", "val_loss", "val_top1_error", "val_top5_error",
}  # fmt: skip


def rows_of(workdir: str) -> list[dict]:
    """metrics.jsonl: one object a validation. Raises InputError where there is none that can be read."""
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        with open(path) as file:
            rows = [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        rows = []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the workdir of a run") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() >= FIELDS:
            raise InputError(f"{path}: line {number} is no validation; delete it, or give another workdir")
    if not rows:
        raise InputError(f"{path}: has no validation yet; let the run come to its first")
    return rows


def workdirs_of(folder: str) -> list[str]:
    """The folder itself if it is a workdir, else those within it. Raises InputError if there are none."""
    found = [folder] if os.path.exists(os.path.join(folder, "config.json")) else []
    found = found or [str(path.parent) for path in sorted(pathlib.Path(folder).glob("*/**/config.json"))]
    if not found:
        raise InputError(f"{folder}: has no config.json; give the workdir of a run, or of a sweep")
    return found


def names_of(workdirs: list[str]) -> list[str]:
    """What tells them apart: their paths below the folder that they have in common."""
    paths = [os.path.abspath(workdir) for workdir in workdirs]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def curves(workdirs: list[str]) -> Figure:
    """Validation errors, and the losses of training and validation, against epochs."""
    keys = -(-len(workdirs) // 3)  # lines of the legend, below both axes
    figure = Figure(figsize=(10, 4.2 + 0.2 * keys), layout="constrained")
    errors, losses = figure.subplots(1, 2)
    for number, (workdir, label) in enumerate(zip(workdirs, names_of(workdirs), strict=True)):
        rows, colour = rows_of(workdir), COLOURS[number % len(COLOURS)]
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        epochs = [row["epoch"] for row in rows]
        for axes, names in (
            (errors, ("val_top1_error", "val_top5_error")),
            (losses, ("val_loss", "train_loss")),
        ):
            for style, name in zip(STYLES, names, strict=False):
                values = [row[name] for row in rows]
                axes.plot(
                    epochs, values, color=colour, linestyle=style, marker=marker, markersize=3, label=label
                )
            for before, after in itertools.pairwise(rows):
                if after["learning_rate"] < before["learning_rate"]:
                    axes.axvline(before["epoch"], color=colour, linewidth=0.8, linestyle=":", zorder=0)
    errors.set(ylabel="validation error (solid: top-1, dashed: top-5)", ylim=(0, None))
    losses.set(ylabel="loss (solid: validation, dashed: training)")
    for axes in (errors, losses):
        axes.set_xlabel("epoch (dotted: the learning rate drops)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    lines = errors.get_legend_handles_labels()[0][::2]  # each run's first
    legend = figure.legend(handles=lines, fontsize="small", loc="outside lower center", ncols=3)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a folder's name is one
    return figure


def table_of(folder: str) -> list[dict]:
    """results.csv of a sweep, a dict of texts a line. Raises InputError if it cannot be read."""
    path = os.path.join(folder, "results.csv")
    try:
        with open(path, newline="") as file:
            table = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        raise InputError(f"{folder}: has no results.csv; give the workdir of a sweep") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); the sweep's command writes it anew") from None
    if not table:
        raise InputError(f"{path}: has no line; the sweep's command writes it anew")
    return table


def effects(folder: str, given=None) -> Figure:
    """Differences of the top-1 error to the first line of a sweep's table, with their standard errors."""
    del given
    found = []
    try:
        for row in table_of(folder):
            if row["top1_difference"]:
                change, error = (100 * float(row[f"top1_difference{x}"] or "nan") for x in ("", "_error"))
                if not np.isfinite(change) or error < 0 or np.isinf(error):
                    raise ValueError(f"it has {change} ± {error}")
                found.append((row["variant"][:40], change, error))
    except (KeyError, TypeError, ValueError) as error:
        why = f"is no table of a sweep ({error}); the sweep's command writes it anew"
        raise InputError(f"{folder}/results.csv: {why}") from None
    if not found:
        raise InputError(f"{folder}: no line of its table has a difference to the first")
    _, changes, errors = zip(*found, strict=True)
    places = range(len(found))
    figure = Figure(figsize=(8, 0.9 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.errorbar(changes, places, xerr=errors, fmt="o", markersize=5, capsize=3, color=COLOURS[0])
    axes.set_xscale("symlog", linthresh=5)  # for tenths of a point beside the 60 of what learns nothing
    low, high = axes.get_xlim()
    ticks = (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50)
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xlim(min(low, -1.2), max(high, 1.2))  # so that a point is marked either way
    labels = [f"{n}  {x:+.2f}" + ("" if np.isnan(error) else f" ± {error:.2f}") for n, x, error in found]
    axes.set_yticks(places, labels, parse_math=False)  # a $ in a name is one
    axes.invert_yaxis()
    axes.set_xlabel("change of the top-1 error in points, ± standard error (logarithmic beyond 5)")
    axes.grid(alpha=0.25, axis="x")
    return figure


TARGET = 0.25  # of figure 1
NAMES = {"relu": "ReLU", "tanh": "tanh"}


def training_errors(workdir: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, training errors) of a run.

    metrics.jsonl has means over the steps between two validations, while the network improves: to first order
    what it was halfway. The first is that of a network that guesses, at 0. Raises InputError.
    """
    rows = rows_of(workdir)
    if any("train_top1_error" not in row for row in rows):
        raise InputError(f"{workdir}: its metrics.jsonl has no train_top1_error; train it anew")
    guessing = 1 - 1 / configuration.of_run(workdir).model.num_classes
    ends = np.array([0, *(row["epoch"] for row in rows)])
    return np.array([0, *(ends[1:] + ends[:-1]) / 2]), np.array(
        [guessing, *(row["train_top1_error"] for row in rows)]
    )


def epochs_to(target: float, epochs, errors) -> float:
    """Epochs until the training error is `target`, by straight lines between points; inf if it never is."""
    points = itertools.pairwise(zip(epochs, errors, strict=True))
    for (start, before), (end, after) in points:
        if after <= target:
            return start + (end - start) * (before - target) / (before - after)
    return np.inf


def figure1(workdirs: list[str]) -> Figure:
    """Training error against epochs, one thin line a run, the mean of each activation thick."""
    runs = {"relu": {}, "tanh": {}}  # activation -> seed -> (epochs, errors)
    for workdir in workdirs:
        config = configuration.of_run(workdir)
        of_seeds = runs[config.model.activation]
        if config.seed in of_seeds:
            raise InputError(
                f"{workdir}: is another run with {config.model.activation} and seed {config.seed}; give"
                " one of each seed"
            )
        of_seeds[config.seed] = training_errors(workdir)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
    reached = {}
    for (activation, of_seeds), colour, style in zip(runs.items(), COLOURS, STYLES, strict=False):
        if not of_seeds:
            continue
        for epochs, errors in of_seeds.values():
            axes.plot(epochs, errors, color=colour, linewidth=0.7, alpha=0.6)
        length = min(len(errors) for _, errors in of_seeds.values())
        epochs, errors = np.mean([[x[:length] for x in run] for run in of_seeds.values()], axis=0)
        reached[activation] = {seed: epochs_to(TARGET, *run) for seed, run in of_seeds.items()}
        label = f"{NAMES[activation]}: {_epochs_in_words(list(reached[activation].values()))}"
        print(f"{label} to {TARGET:.0%} training error")
        axes.plot(epochs, errors, color=colour, linestyle=style, linewidth=2.2, label=label)
    axes.set_title(_ratio_in_words(reached), fontsize="medium")
    print(_ratio_in_words(reached))
    axes.set(xlabel="epoch", ylabel="training error", xlim=(0, None), ylim=(0, 1))
    axes.grid(alpha=0.25)
    axes.legend(title=f"to {TARGET:.0%} training error")
    return figure


def _mean_and_deviation(values) -> str:
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def _epochs_in_words(epochs: list[float]) -> str:
    """A mean over those that came so far would flatter: none is given."""
    late = np.isinf(epochs).sum()
    return f"{late} of {len(epochs)} runs never came" if late else f"{_mean_and_deviation(epochs)} epochs"


def _ratio_in_words(reached: dict) -> str:
    """tanh's epochs by ReLU's. Runs of one seed have the same initial weights and batches: they are pairs."""
    relu, tanh = (reached.get(activation, {}) for activation in ("relu", "tanh"))
    seeds = sorted(relu.keys() & tanh.keys())
    if not seeds or np.inf in (*relu.values(), *tanh.values()):
        return "no ratio: ReLU and tanh must both come there, with the same seeds"
    ratio = _mean_and_deviation([tanh[seed] / relu[seed] for seed in seeds])
    return f"tanh takes {ratio} times the epochs of ReLU to {TARGET:.0%} (seeds: {len(seeds)})"


def figure3(workdir: str, given=None) -> Figure:
    """conv1's kernels of the best checkpoint, all on one scale from black to white.

    16 a row, as the released code draws them (shownet.py:187); a line between the columns of the network.
    """
    step, kernels = columns.conv1(workdir, given.overrides if given else {})
    scaled = (kernels - kernels.min()) / (kernels.max() - kernels.min())
    count, size, _, channels, maps = scaled.shape
    wide = min(maps, 16)
    rows = -(-maps // wide)
    figure = Figure(figsize=(8, 8.8 / wide * rows * count + 0.6), layout="constrained")
    for column, axes in enumerate(figure.subplots(count, 1, squeeze=False)[:, 0]):
        sheet = np.ones((rows * (size + 1) + 1, wide * (size + 1) + 1, channels))
        for number in range(maps):
            top, left = (1 + place * (size + 1) for place in divmod(number, wide))
            sheet[top : top + size, left : left + size] = scaled[column, ..., number]
        axes.imshow(sheet if channels == 3 else sheet[..., 0], cmap="gray", interpolation="nearest")
        axes.set_axis_off()
        title = f"column {column}" if count > 1 else "one column"
        if channels == 3:
            title += f": {columns.colourfulness(kernels[column]):.1%} of the energy is colour"
            print(f"{workdir}, step {step}, {title} (2/3 at random)")
        axes.set_title(title, fontsize="medium", loc="left")
    figure.suptitle(f"conv1, step {step}", fontsize="medium")
    return figure


def figure4(workdir: str, given) -> Figure:
    """A row for each image: itself, its five most probable labels, its six nearest training images."""
    from alexnet_jax import predict

    config = configuration.of_run(workdir, given.overrides)
    network = predict.Network(config, workdir)
    test, train = (
        with_labels_of(network.label_names, open_source(config, split))
        for split in ("test_split", "train_split")
    )
    wrong = [index for index in given.images if not 0 <= index < len(test)]
    if wrong:
        raise InputError(f"--images={wrong[0]}: {config.data.test_split} has images 0 to {len(test) - 1}")
    images, labels = test.read(given.images)
    probabilities = network.probabilities(images)
    near = nearest(network, images, train)
    pictures, near_labels = train.read(near.ravel())

    figure = Figure(figsize=(12, 1.75 * len(images) + 0.3), layout="constrained")
    grid = figure.subplots(len(images), 8, squeeze=False, width_ratios=(1, 1.6, 1, 1, 1, 1, 1, 1))
    for axes in grid[:, [0, *range(2, 8)]].flat:
        axes.set_axis_off()
    count = near.shape[1]  # less than six only of fewer training images
    for row, axes in enumerate(grid):
        predict.draw_top_five(axes[1], probabilities[row], network.names, labels[row])
        shown = [(axes[0], images[row], labels[row])]
        places = range(count * row, count * row + count)
        shown += [(axes[2 + n], pictures[place], near_labels[place]) for n, place in enumerate(places)]
        for each, picture, label in shown:
            each.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
            weight = "bold" if each is axes[0] else "normal"
            name = predict.short(network.names[label], 17)
            each.set_title(name, fontsize="small", weight=weight, parse_math=False)
    return figure


def nearest(network, images: np.ndarray, train, count: int = 6) -> np.ndarray:
    """[n, count] indices of the images of `train` whose features are nearest to those of each image.

    Features are the last hidden layer's activations of the central view; the distance is Euclidean.
    """

    of, config = features(network), network.config
    wanted, sharding = of(images), batch_sharding(network.mesh)
    batches = evaluation_batches(train, config.eval.batch_size, sharding, config.data.threads)
    distances = [
        np.linalg.norm(wanted[:, None] - of(pictures)[np.asarray(real)], axis=2)
        for pictures, _, real in batches
    ]
    return np.argsort(np.hstack(distances), axis=1, kind="stable")[:, :count]


def features(network):
    """Images -> float [n, features], the activations of the last hidden layer for the central view."""
    import jax

    from alexnet_jax import augment, network

    config = network.config
    layer = network.layer_table(config)[-2]
    name = f"{layer.name}/activation" if "activation" in layer.then else layer.name
    forward = make_activations(config, network.mesh)
    place = np.array(augment.test_views(config, 1)[0], np.int32)
    view = jax.jit(lambda images: augment.test_view(images, place, network.statistics, config))

    def of(images) -> np.ndarray:
        activations = np.asarray(forward(network.params, view(images))[1][name])
        return activations.reshape(len(activations), -1)

    return of


FIGURES = {"curves": curves, "effects": effects, "figure1": figure1, "figure3": figure3, "figure4": figure4}
OF_CHECKPOINT = (figure3, figure4)
OF_ONE = (effects, *OF_CHECKPOINT)  # drawn of one workdir, or sweep

KINDS = ("png", "pdf")


def save(figure: Figure, stem: str) -> None:
    for kind in KINDS:
        figure.savefig(f"{stem}.{kind}", dpi=150)
        print(f"{stem}.{kind}")


def _indices(text: str) -> list[int]:
    try:
        return [int(index) for index in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers, as in 0,1,2, got {text!r}") from None


def validated(folder: str) -> list[str]:
    """`workdirs_of` a folder; of several, those with validations, and a line for each that is left out."""
    found = workdirs_of(folder)
    if found == [folder]:
        return found
    kept = []
    for workdir in found:
        try:
            rows_of(workdir)
            kept.append(workdir)
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not kept:
        raise InputError(f"--workdir={folder}: none of its runs has a validation; let one come to its first")
    return kept


def main(arguments: list[str]) -> None:
    parser = command_line.Parser(__doc__, overrides=True)
    parser.add_argument("name", choices=list(FIGURES), metavar="NAME")
    parser.add_argument("--workdir", action="append", type=os.path.expanduser, required=True)
    parser.add_argument("--out")
    parser.add_argument("--images", type=_indices, default=[0, 1, 2, 3, 4])
    given = parser.parse(arguments)
    draw = FIGURES[given.name]
    stem = given.out or os.path.join(given.workdir[0], given.name)
    if os.path.splitext(stem)[1][1:] in KINDS:
        stem = os.path.splitext(stem)[0]
    if given.overrides and draw not in OF_CHECKPOINT:
        raise InputError(f"--config.{next(iter(given.overrides))}: is for figure3 and figure4; leave it out")
    find = workdirs_of if draw in OF_CHECKPOINT else validated
    workdirs = [
        workdir
        for folder in given.workdir
        for workdir in ([folder] if draw is effects else find(folder))  # a sweep's own has its table
    ]
    if draw in OF_ONE and len(workdirs) > 1:
        raise InputError(f"--workdir: {given.name} is of one workdir; these are {len(workdirs)}")
    for kind in KINDS:
        command_line.check_writable("--out", f"{stem}.{kind}")
    save(draw(workdirs[0], given) if draw in OF_ONE else draw(workdirs), stem)


if __name__ == "__main__":
    command_line.run(main)
