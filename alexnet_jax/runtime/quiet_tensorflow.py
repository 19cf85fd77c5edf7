"""TensorFlow, which preparing TFDS's own data sets needs and nothing else does."""

import importlib.util
import os

from alexnet_jax.runtime.errors import InputError


def load(what: str) -> None:
    """Import it without giving it the accelerators, and with as few of its lines on stderr as it allows.

    Raises InputError, which names `what` needs it, if it is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(f"{what}: is prepared with TensorFlow; pip install 'alexnet_jax[tensorflow]'")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # on, it prints a line; nothing is computed with it
    former = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")  # which XLA reads too
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    finally:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = former
