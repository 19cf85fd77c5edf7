"""jax starts with four CPU devices; data sets are prepared, and programs compiled, once for all tests."""

import gc
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import zlib

import jax
import pytest
from helpers.sweeps import sweep_command

os.environ["JAX_PLATFORMS"] = "cpu"  # of the programs that the tests start
# Programs are compiled once, for all tests, the programs that they start, and the next run in this clone.
CACHE = pathlib.Path(__file__).parent.parent / ".cache"
COMPILED = CACHE / "jax"
COMPILED.mkdir(parents=True, exist_ok=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Programs are compiled in half the time without LLVM's optimizations. Tests in this process have them.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.devices()
# Tracing makes millions of small objects that live long: looking for garbage among them so often takes an
# eighth of the time of test_network.py, and a third where more modules share a process.
gc.set_threshold(100_000)

if os.environ.get("ORACLE"):  # `make oracle`: what is skipped without these shall not be skipped there
    import moto  # noqa: F401
    import s3fs  # noqa: F401
    import torch  # noqa: F401


@pytest.fixture(scope="session")
def data_dir():
    """A folder with fashion_mnist_shipped prepared in it, kept for later runs while its code is the same."""
    from alexnet_jax.datasets import prepared
    from configs import quickstart

    config = quickstart.get_config()
    code = pathlib.Path(prepared.__file__).parent.glob("*.py")
    key = zlib.crc32(b"".join(file.read_bytes() for file in sorted(code)))
    config.data.dir = str(CACHE / f"data-{key:08x}")
    prepared.prepared_builder(config)
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


@pytest.fixture(scope="session")
def swept(data_dir, tmp_path_factory):
    """(the folder of the sweep of `sweep_command`, what it printed), of all workers; not to be changed."""
    from alexnet_jax.runtime.files import file_lock

    root, base = pathlib.Path(__file__).parent.parent, tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sweep"
    folder.mkdir(exist_ok=True)
    printed = folder / "printed"
    with file_lock(folder / "lock"):
        if not printed.exists():
            done = subprocess.run(sweep_command(folder, data_dir), cwd=root, capture_output=True, text=True)
            printed.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    code, out, error = json.loads(printed.read_text())
    assert code == 0, out + error
    return folder / "w", out


@pytest.fixture(scope="module")
def workdir(swept):
    """The folder of a run of that sweep."""
    return swept[0] / "ReLU" / "seed-0"


@pytest.fixture(scope="module")
def net(workdir):
    """Its network, for use from Python."""
    import alexnet_jax

    return alexnet_jax.load(workdir)


# Fixtures whose tests start programs or train; `_programs_are_marked` does not see what wider fixtures start.
STARTING = {"finished", "swept", "first_run", "undisturbed", "small_sweep"}


def pytest_collection_modifyitems(items):
    """Mark the tests that start programs, or train, through a fixture, and start with the longest ones."""
    items.sort(key=lambda item: item.path.name != "test_distributed.py")  # at the end one worker would wait
    for item in items:
        if STARTING & set(item.fixturenames):
            item.add_marker("program")


@pytest.fixture(autouse=True)
def _programs_are_marked(request, monkeypatch):
    """Fail a test that starts Python or trains and is not marked `program`: `make check` leaves those out."""
    if request.node.get_closest_marker("program"):
        return
    start = subprocess.Popen.__init__

    def checked(self, command, *args, **kwargs):
        if list(command)[:1] in ([sys.executable], ["bash"]):
            refused()
        start(self, command, *args, **kwargs)  # such as uname, which TensorFlow Datasets asks

    def refused(*_):
        pytest.fail("this test starts a program, or trains: mark it `program`")

    monkeypatch.setattr(subprocess.Popen, "__init__", checked)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refused)
    monkeypatch.setattr("alexnet_jax.train._loop", refused)
