"""TensorFlow, which preparing a data set and clu's writer need and nothing else does."""

import os


def load() -> None:
    """Imports it without giving it the accelerators, and without its lines on stderr about them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    finally:
        os.dup2(stderr, 2)
        os.close(nowhere)
        os.close(stderr)
