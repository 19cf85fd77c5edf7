"""python -m experiments.columns DIR... [--config.eval.step=N]

Measure whether the columns specialise, one in colour and the other not (section 6.1, figure 3). For each
workdir this prints the share of colour in the energy of each column's conv1 kernels, the difference between
the columns, and the difference by chance. For several workdirs it also prints the mean and standard deviation
of the absolute difference.

A kernel's energy is the sum of its squared weights. Its grey part lies along r = g = b, and the rest is
colour: grey has 0 %, a kernel without grey 100 %, and random weights 2/3. The energies of a column are summed
over its kernels, so that a kernel that learned nothing, and keeps its random colour, counts little.

For the difference by chance, the kernels of both columns are shuffled and divided between the columns at
random, 10,000 times. p is the share of these divisions whose absolute difference is at least the measured
one. For several workdirs, the mean of the differences is compared.
"""

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError

DEALS = 10_000


def conv1(workdir: str, overrides: configuration.Overrides) -> tuple[int, np.ndarray]:
    """Return (step, kernels [columns, size, size, channels, maps]) of the best checkpoint.

    Raises InputError.
    """
    from alexnet_jax import evaluate
    from alexnet_jax.runtime.mesh import make_mesh

    config = configuration.of_run(workdir, overrides)
    config.mesh.data = config.mesh.column = 1  # one device always exists, and nothing is computed
    step, params = evaluate.stored_params(config, workdir, make_mesh(config))
    if "conv1" not in params:
        raise InputError(f"{workdir}: its network has no conv1, only {', '.join(params)}")
    return step, np.asarray(params["conv1"]["kernel"], np.float64)


def energies(kernels: np.ndarray) -> np.ndarray:
    """Return [2, maps] for kernels [size, size, 3, maps]: the colour energy of each, and its total energy."""
    mean = kernels.mean(axis=2, keepdims=True)
    return np.stack([np.sum(part**2, axis=(0, 1, 2)) for part in (kernels - mean, kernels)])


def colorfulness(kernels: np.ndarray) -> float:
    """Return the share of colour in the energy of kernels [size, size, 3, maps]."""
    color, energy = energies(kernels).sum(axis=1)
    return float(color / energy)


def differences_by_chance(columns: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return [DEALS] absolute differences between two columns' colorfulness, with shuffled kernels."""
    both = np.concatenate([energies(kernels) for kernels in columns], axis=1)  # [2, kernels]
    deals = draw.permuted(np.tile(np.arange(both.shape[1]), (DEALS, 1)), axis=1)
    color, energy = both[:, deals].reshape(2, DEALS, 2, -1).sum(axis=-1)  # [DEALS, columns]
    return abs(np.diff(color / energy, axis=1)[:, 0])


def p_value(found: float, by_chance: np.ndarray) -> float:
    """Return the share of deals with at least the difference found, which itself counts as a deal.

    The tolerance is for deals that only swap the columns: their sums may differ in the last digit.
    """
    return (1 + np.sum(by_chance >= found - 1e-12)) / (1 + len(by_chance))


def _in_points(found: str, by_chance: np.ndarray, p: float) -> str:
    return (
        f"{found} points, by chance {100 * by_chance.mean():.1f} ± {100 * by_chance.std():.1f} (p = {p:.4f})"
    )


def main(arguments: list[str]) -> None:
    """Print one line per workdir, and one about all. Raises InputError."""
    parser = command_line.Parser(__doc__, overrides=True)
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="the folder of a run")
    given = parser.parse(arguments)
    networks = [(workdir, *conv1(workdir, given.overrides)) for workdir in given.workdirs]
    for workdir, _, columns in networks:
        if columns.shape[3] != 3:
            raise InputError(
                f"{workdir}: its images have {columns.shape[3]} channel, no colour; leave it out"
            )
    draw, found, by_chance = np.random.default_rng(0), [], []
    for workdir, step, columns in networks:
        shares = [colorfulness(kernels) for kernels in columns]
        line = ", ".join(f"column {number} {share:.1%}" for number, share in enumerate(shares))
        line = f"{workdir}, step {step}: colour is {line} of conv1's energy"
        if len(shares) == 2:
            found.append(abs(shares[0] - shares[1]))
            by_chance.append(differences_by_chance(columns, draw))
            p = p_value(found[-1], by_chance[-1])
            line += "; difference " + _in_points(f"{100 * (shares[0] - shares[1]):+.1f}", by_chance[-1], p)
        print(line)
    if len(found) > 1:
        mean, means = float(np.mean(found)), np.mean(by_chance, axis=0)
        spread = f"{100 * mean:.1f} ± {100 * np.std(found, ddof=1):.1f}"
        print(f"{len(found)} networks: absolute difference {_in_points(spread, means, p_value(mean, means))}")


if __name__ == "__main__":
    command_line.run(main)
