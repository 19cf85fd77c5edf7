"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax, in two columns.

From Python:

    net = alexnet_jax.load(workdir)       a trained network: predictions, activations (trained.py)
    config = alexnet_jax.config.load("configs/quickstart.py", {"num_epochs": 1})
    alexnet_jax.train(config, workdir)    as `python -m alexnet_jax.main` does (train.py)
"""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str):
    """Import a name when it is first used, so that a command reports a mistake in its flags at once."""
    if name == "load":
        return importlib.import_module("alexnet_jax.trained").load
    if name in ("config", "train"):
        return importlib.import_module(f"alexnet_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
