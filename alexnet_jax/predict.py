"""python -m alexnet_jax.predict --workdir=DIR IMAGE... [--figure=OUT.png] [--config.FIELD=VALUE ...]

Print the five most probable labels of each picture, by the best checkpoint of a workdir. Pictures are JPEG,
PNG, TIFF, WebP, AVIF, GIF, BMP, JPEG 2000 or Netpbm, of any size, in colour or greyscale. Fields that are not
given, such as eval.views, come from the workdir's config.json. A file that is not a picture is reported in
one line on stderr, the others are still predicted, and the exit code is 1.
More than 100 pictures give several figures, OUT-1.png, OUT-2.png, …, of at most 100 each.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError, UnreadableFiles, printable
from alexnet_jax.workdirs import remote

if TYPE_CHECKING:
    from alexnet_jax.trained import Trained

BATCH = 32
FIGURE = 100  # pictures per figure
CORRECT, OTHER = "#D55E00", "#0072B2"  # vermilion and blue, distinct without colour vision


def top_five(probabilities: np.ndarray) -> np.ndarray:
    """Return the labels of a picture's highest probabilities, at most five; of equal ones the lower first."""
    return np.argsort(-probabilities, kind="stable")[:5]


def draw_top_five(axes, probabilities: np.ndarray, names: list[str], correct: int | None = None) -> None:
    """Draw bars of the five most probable labels, as in figure 4; the bar of label `correct` stands out."""
    labels = top_five(probabilities)
    bars = axes.barh(range(len(labels)), probabilities[labels], color=OTHER, alpha=0.55, height=0.8)
    for bar, label in zip(bars, labels, strict=True):
        if label == correct:
            bar.set(color=CORRECT, hatch="//", edgecolor="white")
        weight = "bold" if label == correct else "normal"
        place = bar.get_y() + bar.get_height() / 2
        name = short(names[label])  # a $ is printed as it is
        axes.text(0.02, place, name, va="center", fontsize="small", weight=weight, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(4.5, -0.5), xticks=[], yticks=[])


def short(name: str, length: int = 22) -> str:
    """Return a class's first name, without its WordNet id and anything after a comma."""
    words = name.split(" ", 1)
    has_id = len(words) == 2 and words[0][:1] == "n" and words[0][1:].isdigit()
    first = (words[1] if has_id else name).partition(",")[0]
    return first if len(first) <= length else first[: length - 1] + "…"


def read(paths: list[str], config) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (path, prepared image) for each readable picture; report the others on stderr."""
    from alexnet_jax import trained

    for path in paths:
        try:
            yield path, trained.prepared_picture(path, config.data.image_size, config.data.channels)
        except UnreadableFiles as error:
            ((where, why),) = error.reasons.items()
            print(f"error: {where}: cannot be read as a picture ({why})", file=sys.stderr)


def figure_of(pictures: list, names: list[str]):
    """Return a matplotlib figure of every picture above its five most probable labels, four per row."""
    from matplotlib.figure import Figure

    # Positions are fixed, in inches: the time of matplotlib's layouts grows with the square of the axes.
    columns, rows = min(len(pictures), 4), -(-len(pictures) // 4)
    width, height = 2.2 * columns, 3.4 * rows
    figure = Figure(figsize=(width, height))
    page = figure.add_axes((0, 0, 1, 1))
    page.set_axis_off()
    for number, (path, picture, probabilities) in enumerate(pictures):
        row, column = divmod(number, 4)
        left, bottom = 2.2 * column + 0.1, height - 3.4 * (row + 1) + 0.1
        place = (left, left + 2, bottom + 1, bottom + 3)
        page.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, extent=place)
        name = short(printable(os.path.basename(path)), 26)
        page.text(left + 1, bottom + 3.08, name, ha="center", fontsize="small", parse_math=False)
        bars = figure.add_axes((left / width, bottom / height, 2 / width, 0.95 / height))
        draw_top_five(bars, probabilities, names)
    page.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    return figure


def predictions(network: "Trained", paths: list[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Print the labels of each readable picture; yield (path, prepared image, probabilities)."""
    for start in range(0, len(paths), BATCH):
        pictures = list(read(paths[start : start + BATCH], network.config))
        if not pictures:
            continue
        probabilities = network.predict(np.stack([picture for _, picture in pictures]))
        for (path, picture), row in zip(pictures, probabilities, strict=True):
            print(printable(path))
            for label in top_five(row):
                print(f"  {row[label]:.4f}  {network.names[label]}")
            yield path, picture, row


def main(arguments: list[str]) -> int:
    """Predict, and return the exit code: 1 if a file was not a picture. Raises InputError."""
    parser = command_line.Parser(__doc__, overrides=True)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of a run")
    parser.add_argument(
        "--figure",
        metavar="OUT.png",
        help="a file for the pictures with their labels; more than 100 give OUT-1.png, OUT-2.png, …",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture")
    given = parser.parse(arguments)
    if given.figure:
        command_line.check_writable("--figure", given.figure)
        if os.path.splitext(given.figure)[1].lower() not in (".png", ".pdf", ".svg", ".jpg", ".jpeg"):
            raise InputError(f"--figure={given.figure}: give a name that ends in .png, .pdf, .svg or .jpg")
    with remote.copied(given.workdir) as workdir:
        config = configuration.of_run(workdir, given.overrides)
        from alexnet_jax.trained import Trained  # here, so that a mistake in the flags is reported at once

        network = Trained(config, workdir)
    pictures, found, figures = predictions(network, given.images), 0, 0
    while shown := list(itertools.islice(pictures, FIGURE)):  # only these are kept in memory
        found, figures = found + len(shown), figures + 1
        if given.figure:
            name, kind = os.path.splitext(given.figure)
            file = f"{name}-{figures}{kind}" if len(given.images) > FIGURE else given.figure
            figure_of(shown, network.names).savefig(file, dpi=150)
    return int(found < len(given.images))


if __name__ == "__main__":
    command_line.run(main)
