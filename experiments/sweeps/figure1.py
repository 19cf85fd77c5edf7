r"""List the networks of figure 1: ReLU and tanh on CIFAR-10.

    python -m experiments.sweep --config=configs/cifar10.py --sweep=experiments/sweeps/figure1.py \
        --workdir=DIR

    python -m experiments.figures figure1 --workdir=DIR

Each has its own learning rate, from configs/cifar10.py.
"""

from experiments.sweeps.variants import Variant


def get_variants(config) -> list[Variant]:
    """Return both networks, for configs/cifar10.py only."""
    if config.name != "cifar10":
        raise ValueError("give --config=configs/cifar10.py, the network of both")
    return [
        Variant("ReLU", {"model.activation": "relu"}, "25 % training error in a sixth of tanh's epochs"),
        Variant("tanh", {}, "", config="configs/cifar10.py:tanh"),
    ]
