"""python -m experiments.figures NAME --workdir=DIR [--workdir=DIR ...] [--out=FILE] [--images=0,1,2]
                              [--config.FIELD=VALUE ...]

NAME is one of
    curves     errors and losses of any workdirs against epochs, with the drops of the learning rate
    effects    the change of the top-1 error in each line of a sweep's table
    figure1    training error against epochs, for ReLU and tanh, with the epochs to 25 % (section 3.1)
    figure3    the kernels of conv1, the first column's above the second's; prints the share of colour in each
    figure4    test images with their five most probable labels, and the six training images with the nearest
               activations in the last hidden layer

A DIR that contains workdirs, such as a sweep's, stands for all of them; effects takes the DIR of a sweep.
Each figure is written as FILE.png and FILE.pdf. --config.FIELD is for figure3 and figure4.
"""

import argparse
import os

from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError

NAMES = ("curves", "effects", "figure1", "figure3", "figure4")
OF_CHECKPOINT = ("figure3", "figure4")
KINDS = ("png", "pdf")


def _indices(text: str) -> list[int]:
    try:
        return [int(index) for index in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers, as in 0,1,2, got {text!r}") from None


def _parse(arguments: list[str]):
    parser = command_line.Parser(__doc__, overrides=True)
    parser.add_argument("name", metavar="NAME", type=command_line.one_of(*NAMES), help="the figure")
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        action="append",
        type=os.path.expanduser,
        required=True,
        help="the folder of a run or a sweep; repeat it for several runs",
    )
    parser.add_argument("--out", metavar="FILE", help="where to write (default: NAME in the first DIR)")
    parser.add_argument(
        "--images", metavar="I,I,...", type=_indices, default="0,1,2,3,4", help="test images of figure4"
    )
    given = parser.parse(arguments)
    if given.overrides and given.name not in OF_CHECKPOINT:
        field, value = next(iter(given.overrides.items()))
        raise InputError(f"--config.{field}={value}: is for figure3 and figure4; leave it out")
    return given


def _find(given) -> list[str]:
    """Return the workdirs that the figure shows; for effects, the folder of the sweep."""
    from experiments.plots import runs

    if given.name == "effects":
        found = given.workdir
    else:
        find = runs.find_workdirs if given.name in OF_CHECKPOINT else runs.find_validated
        found = [workdir for folder in given.workdir for workdir in find(folder)]
    if given.name in ("effects", *OF_CHECKPOINT) and len(found) > 1:
        raise InputError(f"--workdir: {given.name} takes one workdir; these are {len(found)}")
    return found


def _draw(given, workdirs: list[str]):
    if given.name == "curves":
        from experiments.plots import curves

        return curves.draw(workdirs)
    if given.name == "effects":
        from experiments.plots import effects

        return effects.draw(workdirs[0])
    if given.name == "figure1":
        from experiments.plots import figure1

        return figure1.draw(workdirs)
    if given.name == "figure3":
        from experiments.plots import kernels

        return kernels.draw(workdirs[0], given.overrides)
    from experiments.plots import neighbors

    return neighbors.draw(workdirs[0], given.overrides, given.images)


def main(arguments: list[str]) -> None:
    """Draw one figure. Raises InputError."""
    given = _parse(arguments)
    stem = given.out or os.path.join(given.workdir[0], given.name)
    if os.path.splitext(stem)[1][1:] in KINDS:
        stem = os.path.splitext(stem)[0]
    paths = [f"{stem}.{kind}" for kind in KINDS]
    workdirs = _find(given)
    for path in paths:
        command_line.check_writable("--out", path)

    from experiments.plots import common

    common.save(_draw(given, workdirs), paths)


if __name__ == "__main__":
    command_line.run(main)
