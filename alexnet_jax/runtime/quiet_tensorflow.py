"""TensorFlow, which only the preparation of TFDS's own data sets needs."""

import importlib.util
import os

from alexnet_jax.runtime.errors import InputError


def load(what: str) -> None:
    """Import TensorFlow without accelerators, and with as few lines on stderr as it allows.

    Raises InputError, which names its user `what`, if it is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(f"{what}: is prepared with TensorFlow; pip install 'alexnet_jax[tensorflow]'")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not needed, and would print a line
    former = os.environ.get("TF_CPP_MIN_LOG_LEVEL")  # which XLA reads too
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    finally:
        if former is None:
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]
        else:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = former
