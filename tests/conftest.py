"""jax starts with four CPU devices, and the shipped data set is prepared once for all tests."""

import os

import jax
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"  # of the programs that the tests start
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.devices()

if os.environ.get("ORACLE"):  # `make oracle`: what is skipped without PyTorch shall not be skipped there
    import torch  # noqa: F401


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with fashion_mnist_shipped prepared in it."""
    from alexnet_jax import input_pipeline
    from configs import quickstart

    config = quickstart.get_config()
    config.data.dir = str(tmp_path_factory.mktemp("data"))
    input_pipeline.prepared_builder(config)
    return config.data.dir
