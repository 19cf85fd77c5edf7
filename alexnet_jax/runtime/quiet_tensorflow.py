"""TensorFlow, which preparing a data set needs and nothing else does."""

import os


def load() -> None:
    """Import it without giving it the accelerators, and with as few of its lines on stderr as it allows."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # on, it prints a line; nothing is computed with it
    former = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")  # which XLA reads too
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    finally:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = former
