"""python -m experiments.columns DIR... [--config.eval.step=N]

Do the columns specialise, one in colour and the other not (section 6.1, figure 3)? Prints for each workdir
how much of the energy of each column's conv1 kernels is colour, the difference of the columns, and what
chance gives; of several workdirs also the mean and standard deviation of the absolute difference.

A kernel's energy is the sum of its squared weights. Grey is the part along r = g = b, colour the rest: 0 % is
grey, 100 % has no grey, weights drawn at random have 2/3. The kernels of a column are taken together, so that
one which has learned nothing, and is as coloured as it was drawn, counts as little as it weighs.

Chance: the kernels of both columns are shuffled and dealt out anew, 10,000 times. p is the share of deals
with at least the absolute difference that was found (of several workdirs, the mean of theirs).
"""

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.mesh import make_mesh

DEALS = 10_000


def conv1(workdir: str, overrides=None) -> tuple[int, np.ndarray]:
    """(step, kernels [columns, size, size, channels, maps]) of the best checkpoint. Raises InputError."""
    from alexnet_jax import evaluate

    config = configuration.of_run(workdir, overrides or {})
    config.mesh.data = config.mesh.column = 1  # nothing is computed, and one device is there
    step, params = evaluate.stored_params(config, workdir, make_mesh(config))
    if "conv1" not in params:
        raise InputError(f"{workdir}: its network has no conv1, which has {', '.join(params)}")
    return step, np.asarray(params["conv1"]["kernel"], np.float64)


def energies(kernels: np.ndarray) -> np.ndarray:
    """[2, maps] of kernels [size, size, 3, maps]: the energy of each that is colour, and all of it."""
    mean = kernels.mean(axis=2, keepdims=True)
    return np.stack([np.sum(part**2, axis=(0, 1, 2)) for part in (kernels - mean, kernels)])


def colourfulness(kernels: np.ndarray) -> float:
    """The share of the energy of kernels [size, size, 3, maps] that is colour."""
    colour, energy = energies(kernels).sum(axis=1)
    return float(colour / energy)


def differences_by_chance(columns: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """[DEALS] absolute differences of two columns' colourfulness, their kernels shuffled between them."""
    both = np.concatenate([energies(kernels) for kernels in columns], axis=1)  # [2, kernels]
    deals = draw.permuted(np.tile(np.arange(both.shape[1]), (DEALS, 1)), axis=1)
    colour, energy = both[:, deals].reshape(2, DEALS, 2, -1).sum(axis=-1)  # [DEALS, columns]
    return abs(np.diff(colour / energy, axis=1)[:, 0])


def p_value(found: float, by_chance: np.ndarray) -> float:
    """The share of deals with at least the difference found, which is one of them itself.

    A deal that only exchanges the columns may sum to a last digit less.
    """
    return (1 + np.sum(by_chance >= found - 1e-12)) / (1 + len(by_chance))


def _in_points(found: str, by_chance: np.ndarray, p: float) -> str:
    return (
        f"{found} points, by chance {100 * by_chance.mean():.1f} ± {100 * by_chance.std():.1f} (p = {p:.4f})"
    )


def main(arguments: list[str]) -> None:
    parser = command_line.Parser(__doc__, overrides=True)
    parser.add_argument("workdirs", nargs="+", metavar="DIR")
    given = parser.parse(arguments)
    networks = [(workdir, *conv1(workdir, given.overrides)) for workdir in given.workdirs]
    for workdir, _, columns in networks:
        if columns.shape[3] != 3:
            raise InputError(
                f"{workdir}: its images have {columns.shape[3]} channel, no colour; leave it out"
            )
    draw, found, by_chance = np.random.default_rng(0), [], []
    for workdir, step, columns in networks:
        shares = [colourfulness(kernels) for kernels in columns]
        line = ", ".join(f"column {number} {share:.1%}" for number, share in enumerate(shares))
        line = f"{workdir}, step {step}: colour is {line} of conv1's energy"
        if len(shares) == 2:
            found.append(abs(shares[0] - shares[1]))
            by_chance.append(differences_by_chance(columns, draw))
            p = p_value(found[-1], by_chance[-1])
            line += "; difference " + _in_points(f"{100 * (shares[0] - shares[1]):+.1f}", by_chance[-1], p)
        print(line)
    if len(found) > 1:
        mean, means = np.mean(found), np.mean(by_chance, axis=0)
        spread = f"{100 * mean:.1f} ± {100 * np.std(found, ddof=1):.1f}"
        print(f"{len(found)} networks: absolute difference {_in_points(spread, means, p_value(mean, means))}")


if __name__ == "__main__":
    command_line.run(main)
