r"""List the lines of table 1: errors on ILSVRC-2010's test images (section 6.1).

    python -m experiments.sweep --config=configs/paper.py:2010 --sweep=experiments/sweeps/table1.py \
        --workdir=DIR

One line has ten views, the other one view.
"""

from experiments.sweeps.variants import Ensemble, Variant


def get_variants(config) -> list[Variant | Ensemble]:
    """Return a network, and the same network with one view."""
    del config
    return [
        Variant("CNN", {"eval.views": 10}, "37.5 / 17.0 %"),
        Ensemble("CNN, one view", {"CNN": 1}, "39.0 / 18.3 %", {"eval.views": 1}),
    ]
