"""Figure 1: epochs to a training error, with ReLU and with tanh (section 3.1)."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from alexnet_jax import config as configuration
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs.metrics import read_rows
from experiments.plots.common import COLORS, STYLES

TARGET = 0.25
NAMES = {"relu": "ReLU", "tanh": "tanh"}


def training_errors(workdir: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (epochs, training errors) of a run. Raises InputError if its rows lack them.

    metrics.jsonl has means over the steps between two validations, while the network improves. To first order
    a mean is the error halfway between them. The first point, at 0, is the error of guessing.
    """
    rows = read_rows(workdir)
    if any("train_top1_error" not in row for row in rows):
        raise InputError(f"{workdir}: its metrics.jsonl has no train_top1_error; train it again")
    guessing = 1 - 1 / configuration.of_run(workdir).model.num_classes
    ends = np.array([0, *(row["epoch"] for row in rows)])
    epochs = np.array([0, *(ends[1:] + ends[:-1]) / 2])
    return epochs, np.array([guessing, *(row["train_top1_error"] for row in rows)])


def epochs_to(target: float, epochs, errors) -> float:
    """Return the interpolated epochs until the training error reaches `target`; inf if it never does."""
    points = itertools.pairwise(zip(epochs, errors, strict=True))
    for (start, before), (end, after) in points:
        if after <= target:
            return start + (end - start) * (before - target) / (before - after)
    return np.inf


def draw(workdirs: list[str]) -> Figure:
    """Draw training error against epochs: a thin line per run, and a thick one per activation's mean."""
    runs = _runs(workdirs)
    reached = {
        activation: {seed: epochs_to(TARGET, *run) for seed, run in of_seeds.items()}
        for activation, of_seeds in runs.items()
    }
    ratio = _ratio_in_words(reached)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
    for (activation, of_seeds), color, style in zip(runs.items(), COLORS, STYLES, strict=False):
        if not of_seeds:
            continue
        for epochs, errors in of_seeds.values():
            axes.plot(epochs, errors, color=color, linewidth=0.7, alpha=0.6)
        length = min(len(errors) for _, errors in of_seeds.values())
        epochs, errors = np.mean([[x[:length] for x in run] for run in of_seeds.values()], axis=0)
        label = f"{NAMES[activation]}: {_epochs_in_words(list(reached[activation].values()))}"
        print(f"{label} to {TARGET:.0%} training error")
        axes.plot(epochs, errors, color=color, linestyle=style, linewidth=2.2, label=label)
    print(ratio)
    axes.set_title(ratio, fontsize="medium")
    axes.set(xlabel="epoch", ylabel="training error", xlim=(0, None), ylim=(0, 1))
    axes.grid(alpha=0.25)
    axes.legend(title=f"to {TARGET:.0%} training error")
    return figure


def _runs(workdirs: list[str]) -> dict[str, dict]:
    """Return {activation: {seed: (epochs, errors)}}. Raises InputError for two runs of one seed."""
    runs = {activation: {} for activation in NAMES}
    for workdir in workdirs:
        config = configuration.of_run(workdir)
        of_seeds = runs[config.model.activation]
        if config.seed in of_seeds:
            raise InputError(
                f"{workdir}: is another run with {config.model.activation} and seed {config.seed}; give"
                " one of each seed"
            )
        of_seeds[config.seed] = training_errors(workdir)
    return runs


def _mean_and_deviation(values) -> str:
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def _epochs_in_words(epochs: list[float]) -> str:
    """Return the mean, or the number of runs that missed the target: a mean of the others would flatter."""
    late = np.isinf(epochs).sum()
    return f"{late} of {len(epochs)} runs never got" if late else f"{_mean_and_deviation(epochs)} epochs"


def _ratio_in_words(reached: dict) -> str:
    """Return the ratio of tanh's epochs to ReLU's, in pairs of one seed, initial weights and batches."""
    relu, tanh = reached["relu"], reached["tanh"]
    seeds = sorted(relu.keys() & tanh.keys())
    if not seeds or np.inf in (*relu.values(), *tanh.values()):
        return "no ratio: ReLU and tanh must both get there, with the same seeds"
    ratio = _mean_and_deviation([tanh[seed] / relu[seed] for seed in seeds])
    return f"tanh takes {ratio} times the epochs of ReLU to {TARGET:.0%} (seeds: {len(seeds)})"
