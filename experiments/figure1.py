"""Figure 1: ReLU and tanh on CIFAR-10, for `python -m experiments.figures figure1`.

python -m experiments.sweep --config=configs/cifar10.py --sweep=experiments/figure1.py --workdir=DIR

Each has its own learning rate, which configs/cifar10.py gives.
"""

from experiments.variants import Variant


def get_variants(config) -> list[Variant]:
    if config.name != "cifar10":
        raise ValueError("give --config=configs/cifar10.py, whose network tanh's has to be")
    return [
        Variant("ReLU", {"model.activation": "relu"}, "25 % training error in a sixth of tanh's epochs"),
        Variant("tanh", {}, "", config="configs/cifar10.py:tanh"),
    ]
