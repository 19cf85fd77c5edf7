"""jax starts with four CPU devices; data sets are prepared, and programs compiled, once for all tests."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"  # of the programs that the tests start
# Programs are compiled once, for all tests, the programs that they start, and the next run in this clone.
COMPILED = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
COMPILED.mkdir(parents=True, exist_ok=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.devices()

if os.environ.get("ORACLE"):  # `make oracle`: what is skipped without PyTorch shall not be skipped there
    import torch  # noqa: F401


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with fashion_mnist_shipped prepared in it."""
    from alexnet_jax.datasets.prepared import prepared_builder
    from configs import quickstart

    config = quickstart.get_config()
    config.data.dir = str(tmp_path_factory.mktemp("data"))
    prepared_builder(config)
    return config.data.dir


@pytest.fixture(scope="session", params=["2012", "2010"])
def small_ilsvrc(request, tmp_path_factory):
    """(configuration, {split: {file name: (content, WordNet id)}}) of small archives, prepared."""
    from helpers import data_sets, small_archives

    folder = tmp_path_factory.mktemp(request.param)
    expected = small_archives.tiny(folder / "archives", request.param)
    config = data_sets.ilsvrc(request.param, folder / "archives", folder / "data")
    data_sets.open_source(config, "train_split")
    return config, expected


@pytest.fixture(scope="session")
def archives_2010(tmp_path_factory):
    """The folder of small archives of ILSVRC-2010; not to be changed."""
    from helpers import small_archives

    folder = tmp_path_factory.mktemp("archives")
    small_archives.tiny(folder, "2010")
    return folder


TWO = """
from experiments.sweeps.variants import Ensemble, Variant

def get_variants(config):
    tanh = Variant("tanh", {"model.activation": "tanh"}, "slower")
    return [Variant("ReLU", {}, ""), tanh, Ensemble("both", {"ReLU": 1, "tanh": 1}, "")]
"""


def sweep_command(folder: pathlib.Path, data_dir: str) -> list[str]:
    """Two networks and their ensemble, in `folder`/w, as small as they may be."""
    (folder / "two.py").write_text(TWO)
    return [
        sys.executable, "-m", "experiments.sweep", "--config=configs/quickstart.py",
        f"--sweep={folder}/two.py", f"--workdir={folder}/w", "--seeds=1", "--jobs=2",
        f"--config.data.dir={data_dir}", "--config.data.train_split=train[:640]",
        "--config.data.val_split=train[-100:]", "--config.data.test_split=test[:100]",
        "--config.num_epochs=2", "--config.batch_size=32", "--config.checkpoint.every_steps=5",
        "--config.model.width=0.5", "--config.eval.views=1", "--config.eval.batch_size=100",
        *(f"--config.model.layers.{layer}.enabled=False" for layer in ("conv3", "conv4", "fc6")),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def swept(data_dir, tmp_path_factory):
    """(the folder of the sweep of `sweep_command`, what it printed)."""
    folder = tmp_path_factory.mktemp("sweep")
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run(sweep_command(folder, data_dir), cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "w", done.stdout
