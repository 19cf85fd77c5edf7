"""python -m experiments.figures NAME --workdir=DIR [--workdir=DIR ...] [--out=FILE] [--images=0,1,2]
                              [--config.FIELD=VALUE ...]

NAME is one of
    curves     errors and losses of any workdirs against epochs, the drops of the learning rate marked
    figure1    training error against epochs, ReLU and tanh, with the epochs to 25 % (section 3.1)
    figure3    the kernels of conv1, the first column's above the second's; prints how much colour each has
    figure4    the test images of --images: five most probable labels, and the six training images whose
               activations in the last hidden layer are nearest

A DIR that holds workdirs, as that of a sweep does, stands for all of them. Each figure is written as FILE.png
and FILE.pdf; FILE is NAME in the first DIR if left out.
"""

import json
import os
import pathlib

import numpy as np
from matplotlib.figure import Figure

from alexnet_jax import command_line
from alexnet_jax import config as configuration
from alexnet_jax.errors import InputError

# Okabe and Ito's, which are told apart without colour vision; line styles do it in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", (0, (1, 1)))
MARKERS = ("", "o", "s", "^")  # once all colours are taken


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


def workdirs_of(folder: str) -> list[str]:
    """The folder itself if it is a workdir, else those within it. Raises InputError if there are none."""
    found = [folder] if os.path.exists(os.path.join(folder, "config.json")) else []
    found = found or [str(path.parent) for path in sorted(pathlib.Path(folder).glob("*/**/config.json"))]
    if not found:
        raise InputError(f"--workdir={folder}: has no config.json; give the workdir of a run, or of a sweep")
    return found


def names_of(workdirs: list[str]) -> list[str]:
    """What tells them apart: their paths below the folder that they have in common."""
    paths = [os.path.abspath(workdir) for workdir in workdirs]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def curves(workdirs: list[str], given=None) -> Figure:
    """Validation errors, and the losses of training and validation, against epochs."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    errors, losses = figure.subplots(1, 2)
    for number, (workdir, label) in enumerate(zip(workdirs, names_of(workdirs), strict=True)):
        rows, colour = rows_of(workdir), COLOURS[number % len(COLOURS)]
        column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        epochs, marker = column["epoch"], MARKERS[number // len(COLOURS) % len(MARKERS)]
        for axes, names in (
            (errors, (("val_top1_error", "top-1"), ("val_top5_error", "top-5"))),
            (losses, (("val_loss", "validation"), ("train_loss", "training"))),
        ):
            for style, (name, what) in zip(STYLES, names, strict=False):
                axes.plot(
                    epochs, column[name], color=colour, linestyle=style, marker=marker, markersize=3,
                    label=f"{label}, {what}",
                )  # fmt: skip
            for drop in np.flatnonzero(np.diff(column["learning_rate"]) < 0):
                axes.axvline(epochs[drop], color=colour, linewidth=0.8, linestyle=":", zorder=0)
    errors.set_ylabel("validation error")
    losses.set_ylabel("loss")
    errors.set_ylim(bottom=0)
    for axes in (errors, losses):
        axes.set_xlabel("epoch (dotted: the learning rate drops)")
        axes.grid(alpha=0.25)
        if len(axes.get_legend_handles_labels()[1]) > 8:  # beside the curves they would hide them
            axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2)
        else:
            axes.legend(fontsize="small")
    return figure


TARGET = 0.25  # of figure 1
NAMES = {"relu": "ReLU", "tanh": "tanh"}


def epochs_to(target: float, errors: list[float]) -> float:
    """Epochs until the training error is `target`, between epochs by a straight line; inf if it never is."""
    for epoch, (before, after) in enumerate(zip([1.0, *errors], errors, strict=False)):
        if after <= target:
            return epoch + (before - target) / (before - after)
    return np.inf


def figure1(workdirs: list[str], given=None) -> Figure:
    """Training error against epochs, one thin line a run, the mean of each activation thick."""
    del given
    runs = {}
    for workdir in workdirs:
        rows = rows_of(workdir)
        if "train_top1_error" not in rows[0]:
            raise InputError(f"{workdir}: its metrics.jsonl has no train_top1_error; train it anew")
        activation = configuration.of_run(workdir).model.activation
        runs.setdefault(activation, []).append([row["train_top1_error"] for row in rows])
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    reached = {}
    for (activation, errors), colour, style in zip(
        sorted(runs.items()), COLOURS, STYLES, strict=False
    ):  # at most two activations
        for each in errors:
            axes.plot(range(1, len(each) + 1), each, color=colour, linewidth=0.7, alpha=0.6)
        length = min(map(len, errors))
        mean = np.mean([each[:length] for each in errors], axis=0)
        epochs = reached[activation] = np.array([epochs_to(TARGET, each) for each in errors])
        when = f"{_mean_and_deviation(epochs)} epochs" if np.isfinite(epochs).all() else "not reached"
        label = f"{NAMES[activation]}: {when}"
        axes.plot(range(1, length + 1), mean, color=colour, linestyle=style, linewidth=2.2, label=label)
    axes.axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
    if {"relu", "tanh"} <= reached.keys() and all(np.isfinite(epochs).all() for epochs in reached.values()):
        relu, tanh = reached["relu"], reached["tanh"]
        ratio = tanh.mean() / relu.mean()
        # First order: relative errors of two independent means add in squares.
        spread = ratio * np.hypot(*(_error_of_mean(epochs) / epochs.mean() for epochs in (relu, tanh)))
        text = f"tanh takes {ratio:.2f}" + (f" ± {spread:.2f}" if np.isfinite(spread) else "")
        text += f" times the epochs of ReLU to {TARGET:.0%}"
        axes.set_title(text, fontsize="medium")
        print(text)
    axes.set(xlabel="epoch", ylabel="training error", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(title=f"to {TARGET:.0%} training error")
    return figure


def _mean_and_deviation(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def _error_of_mean(values: np.ndarray) -> float:
    return values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan


def colourfulness(kernels: np.ndarray) -> float:
    """Of kernels [size, size, 3, maps]: the mean share of a kernel's energy that is not grey.

    Grey is what lies along (1, 1, 1) / sqrt(3). Kernels drawn at random have 2/3.
    """
    energy = (kernels**2).sum(axis=(0, 1, 2))
    grey = (kernels.sum(axis=2) ** 2 / 3).sum(axis=(0, 1))
    return float((1 - grey / energy).mean())


def figure3(workdirs: list[str], given=None) -> Figure:
    """conv1's kernels of the best checkpoint, all on one scale from black to white.

    16 a row, as the released code draws them (shownet.py:187); a line between the columns of the network.
    """
    from alexnet_jax import evaluate, parallel

    (workdir,) = workdirs
    config = configuration.of_run(workdir, given.overrides if given else ())
    step, params = evaluate.stored_params(config, workdir, parallel.make_mesh(config))
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
        title = f"column {column}" if count > 1 else "conv1"
        if channels == 3:
            title += f": {colourfulness(columns[column]):.1%} of the energy is colour"
            print(f"{workdir}, step {step}, {title} (2/3 at random)")
        axes.set_title(title, fontsize="medium", loc="left")
    figure.suptitle(f"conv1 of {config.name}, step {step}", fontsize="medium")
    return figure


def figure4(workdirs: list[str], given=None) -> Figure:
    """A row for each image: itself, its five most probable labels, its six nearest training images."""
    from alexnet_jax import input_pipeline, predict

    (workdir,) = workdirs
    config = configuration.of_run(workdir, given.overrides)
    network = predict.Network(config, workdir)
    test, train = (input_pipeline.open_source(config, split) for split in ("test_split", "train_split"))
    wrong = [index for index in given.images if not 0 <= index < len(test)]
    if wrong:
        raise InputError(f"--images={wrong[0]}: {config.data.test_split} has images 0 to {len(test) - 1}")
    images, labels = test.read(given.images)
    probabilities = network.probabilities(images)
    near = nearest(network, images, train)
    pictures, near_labels = train.read(near.ravel())

    figure = Figure(figsize=(12, 1.75 * len(images) + 0.3), layout="constrained")
    grid = figure.subplots(len(images), 8, squeeze=False, width_ratios=(1, 1.6, 1, 1, 1, 1, 1, 1))
    for row, axes in enumerate(grid):
        predict.draw_top_five(axes[1], probabilities[row], network.names, labels[row])
        shown = [(axes[0], images[row], labels[row])]
        places = range(6 * row, 6 * row + near.shape[1])
        shown += [(axes[2 + n], pictures[place], near_labels[place]) for n, place in enumerate(places)]
        for each, picture, label in shown:
            each.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
            weight = "bold" if each is axes[0] else "normal"
            each.set_title(predict.short(network.names[label], 17), fontsize="small", weight=weight)
        for each in (axes[0], *axes[2:]):
            each.set_axis_off()
    return figure


def nearest(network, images: np.ndarray, train, count: int = 6) -> np.ndarray:
    """[n, count] indices of the images of `train` whose features are nearest to those of each image.

    Features are the last hidden layer's activations of the central view; the distance is Euclidean.
    """
    from alexnet_jax import input_pipeline, parallel

    of = features(network)
    wanted, batch = of(images), network.config.eval.batch_size
    sharding = parallel.batch_sharding(network.mesh)
    best = np.full((len(images), 0), np.inf)
    indices = np.zeros((len(images), 0), int)
    batches = input_pipeline.padded(train, batch, sharding, network.config.data.threads)
    for number, (pictures, _, real) in enumerate(batches):
        theirs = of(pictures)[np.asarray(real)]
        distances = np.linalg.norm(wanted[:, None] - theirs[None], axis=2)
        here = np.broadcast_to(number * batch + np.arange(len(theirs)), distances.shape)
        best, indices = np.hstack([best, distances]), np.hstack([indices, here])
        order = np.argsort(best, axis=1, kind="stable")[:, :count]
        best, indices = (np.take_along_axis(x, order, axis=1) for x in (best, indices))
    return indices


def features(network):
    """Images -> float [n, features], the activations of the last hidden layer for the central view."""
    import jax

    from alexnet_jax import augment, parallel, shapes

    config = network.config
    layer = shapes.layer_shapes(config)[-2]
    name = f"{layer.name}/activation" if "activation" in layer.then else layer.name
    forward = parallel.forward(config, network.mesh)
    place = np.array(augment.test_views(config, 1)[0], np.int32)
    view = jax.jit(lambda images: augment.test_view(images, place, network.statistics, config))

    def of(images) -> np.ndarray:
        activations = np.asarray(forward(network.params, view(images))[1][name])
        return activations.reshape(len(activations), -1)

    return of


FIGURES = {"curves": curves, "figure1": figure1, "figure3": figure3, "figure4": figure4}
OF_ONE = (figure3, figure4)


def save(figure: Figure, stem: str, kinds=("png", "pdf")) -> None:
    """Raises InputError."""
    for kind in kinds:
        try:
            figure.savefig(f"{stem}.{kind}", dpi=150)
        except OSError as error:
            raise InputError(
                f"--out={stem}.{kind}: cannot be written ({error.strerror}); give another"
            ) from None
        print(f"{stem}.{kind}")


def _indices(text: str) -> list[int]:
    return [int(index) for index in text.split(",")]


def main(arguments: list[str]) -> None:
    parser = command_line.Parser(__doc__, overrides=True)
    parser.add_argument("name", choices=list(FIGURES), metavar="NAME")
    parser.add_argument("--workdir", action="append", required=True)
    parser.add_argument("--out")
    parser.add_argument("--images", type=_indices, default=[0, 1, 2, 3, 4])
    given = parser.parse(arguments)
    draw = FIGURES[given.name]
    workdirs = [workdir for folder in given.workdir for workdir in workdirs_of(folder)]
    if draw in OF_ONE and len(workdirs) > 1:
        raise InputError(f"--workdir: {given.name} is of one workdir; these are {len(workdirs)}")
    stem = os.path.splitext(given.out)[0] if given.out else os.path.join(given.workdir[0], given.name)
    save(draw(workdirs, given), stem)


if __name__ == "__main__":
    command_line.run(main)
