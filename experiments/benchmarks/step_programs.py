"""The programs of steps.py: ours, the baselines, and the product of two matrices as a reference.

Each returns (a step, facts). Libraries are imported inside functions, so that a program loads only its own.
"""

import resource
import sys
import time

PRODUCT = 2048  # rows and columns of the matrices whose product measures the machine's speed


def timed(start, started: float, *arguments):
    """Return (n -> the seconds of n steps and the peak memory, facts) for a program of this module.

    Two steps are not measured. `first_step_seconds` is the time from `started` to the end of the first.
    """
    step, facts = start(*arguments)
    step()
    facts["first_step_seconds"] = round(time.time() - started, 3)
    step()
    return lambda steps: ([_seconds(step) for _ in range(steps)], peak_memory()), facts


def _seconds(step) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux; on Linux getrusage would include the parent
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def ours(what: str, config):
    """Return a step of our program, "train" or "infer". Raises InputError for an impossible mesh."""
    import jax
    import ml_collections
    import numpy as np

    from alexnet_jax import optimizer
    from alexnet_jax.augment import test_views
    from alexnet_jax.runtime.mesh import batch_sharding, make_mesh, replicated
    from alexnet_jax.step import abstract_state, init_state, make_train_step, make_view_output

    config = ml_collections.FrozenConfigDict(config)
    mesh, tx = make_mesh(config, ("batch_size",)), optimizer.make(config)
    size, channels, draw = config.data.image_size, config.data.channels, np.random.default_rng(0)
    images = draw.integers(0, 256, (config.batch_size, size, size, channels), dtype=np.uint8)
    labels = draw.integers(0, config.model.num_classes, config.batch_size).astype(np.int32)
    images, labels = jax.device_put((images, labels), batch_sharding(mesh))
    statistics = {
        "mean_image": np.full((size, size, channels), 120, np.float32),
        "channel_mean": np.full(channels, 120, np.float32),
        "channel_std": np.full(channels, 74, np.float32),
        "eigenvectors": np.eye(channels, dtype=np.float32),
        "standard_deviations": np.full(channels, 40, np.float32),
    }
    statistics = jax.device_put(statistics, replicated(mesh))
    if what == "train":
        function = make_train_step(config, mesh, tx)
        args = init_state(config, mesh, tx), images, labels, statistics
    else:
        function, view = make_view_output(config, mesh), np.array(test_views(config, 1)[0], np.int32)
        params = jax.tree.map(  # not init_state, whose momentum would count in the memory
            lambda x: jax.device_put(0.01 * draw.standard_normal(x.shape, np.float32), x.sharding),
            abstract_state(config, mesh, tx).params,
        )
        args = params, images, view, statistics
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    facts = {
        "compile_seconds": round(time.perf_counter() - start, 3),
        "mesh": dict(mesh.shape),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }

    def step():
        nonlocal args
        results = jax.block_until_ready(compiled(*args))
        if what == "train":
            args = (results[0], *args[1:])  # the last state's buffers were donated

    return step, facts


def product():
    """Return a step that multiplies two square matrices on one device."""
    import jax

    x = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT))
    multiply = jax.jit(lambda x: x @ x)
    return lambda: multiply(x).block_until_ready(), {}


def torch(what: str, arguments: dict):
    """Return a step of torch_baseline.py."""
    from experiments.benchmarks import torch_baseline

    return torch_baseline.start(what, **arguments)


def onnxruntime(what: str, arguments: dict):
    """Return a step of onnx_baseline.py, which is a forward pass."""
    from experiments.benchmarks import onnx_baseline

    del what
    return onnx_baseline.start(**arguments)
