r"""List ablations of the paper, each at a learning rate of its own, chosen from a grid.

    python -m experiments.sweep --config=configs/imagenette.py --sweep=experiments/sweeps/claims.py:rates \
        --first_seed=9 --seeds=1 --workdir=DIR …
    python -m experiments.sweep --config=configs/imagenette.py --sweep=experiments/sweeps/claims.py \
        --workdir=DIR …
    … --sweep='experiments/sweeps/claims.py:baseline,no dropout'    # some of the lines

experiments/results/claims/README.md is the study that it belongs to.
"""

from experiments.sweeps import ablations
from experiments.sweeps.variants import Variant

COMMON = 0.01
CHOSEN = {"no dropout": 0.005, "no normalisation": 0.005}  # by line, if it is not COMMON
# Without dropout activations are twice as large in training. At 0.01 the network stays at chance.
GRID = {"no dropout": (0.0025, 0.005)}
COMMON_GRID = (0.005, 0.01, 0.02)
LINES = (
    "baseline", "no dropout", "no crops and flips", "no normalisation", "one GPU", "columns never meet",
    "no colour noise", "no conv4", "no conv5",
)  # fmt: skip


def get_variants(config, names: str = "") -> list[Variant]:
    """Return the lines of the study, those of the grid of rates ("rates"), or those of `names`."""
    both = {"augment.crop": False, "augment.flip": False}
    known = {variant.name: variant for variant in ablations.get_variants(config)}
    known["no crops and flips"] = Variant(
        "no crops and flips", both, '"substantial overfitting" (section 4.1)'
    )
    lines = [_at(known[name], name, CHOSEN.get(name, COMMON)) for name in LINES]
    grid = [
        _at(known[name], f"{name} at {rate:g}", rate)
        for name in LINES
        for rate in GRID.get(name, COMMON_GRID)
    ]
    if names == "rates":
        return grid
    wanted = names.split(",") if names else LINES
    there = [variant for variant in (*lines, *grid) if variant.name in wanted]
    if missing := set(wanted) - {variant.name for variant in there}:
        raise ValueError(f"there is no {', '.join(sorted(missing))}; there are {', '.join(LINES)}, and rates")
    return there


def _at(variant: Variant, name: str, rate: float) -> Variant:
    return Variant(name, {**variant.overrides, "optimizer.learning_rate": rate}, variant.paper)
