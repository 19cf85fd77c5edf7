"""A process that takes steps when it is told to: a contender of experiments/step_benchmark.py.

Its standard input has, a line each, what to run, as a Python literal, and then requests; the answers on its
standard output are JSON:

    (started)   builds, and takes the two steps that are not measured; answers facts
    go          takes `steps` steps; answers the seconds of each, and the most bytes that were ever resident

What is wrong is the last line of its standard error; exit code 2 where it is an InputError.
"""

import ast
import json
import os
import resource
import sys
import time

from alexnet_jax.runtime.errors import InputError, first_line
from alexnet_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from alexnet_jax.step import abstract_state, init_state, make_train_step, make_view_outputs

PRODUCT = 2048  # rows and columns of the matrices whose product says what this machine can do


def ours(given: dict):
    """(a step, facts) of our program. Raises InputError for a mesh that these devices do not allow."""
    import jax
    import ml_collections
    import numpy as np

    from alexnet_jax import optimizer

    config = ml_collections.FrozenConfigDict(given["config"])
    mesh, rule = make_mesh(config, ("batch_size",)), optimizer.make(config)
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
    if given["what"] == "train":
        function = make_train_step(config, mesh, rule)
        args = init_state(config, mesh, rule), images, labels, statistics
    else:
        outputs = make_view_outputs(config, mesh, views=1)
        # To be compiled apart from its first run; nothing but the place of the view is fixed by this.
        function = jax.jit(lambda *args: outputs(*args)[0])
        params = jax.tree.map(  # not init_state, whose momentum would count as memory
            lambda x: jax.device_put(0.01 * draw.standard_normal(x.shape, np.float32), x.sharding),
            abstract_state(config, mesh, rule).params,
        )
        args = params, images, statistics
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
        if given["what"] == "train":
            args = (results[0], *args[1:])  # the last state's buffers were given away

    return step, facts


def product(given: dict):
    """(a product of two square matrices on one device, facts)."""
    import jax

    x = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT))
    multiply = jax.jit(lambda x: x @ x)
    return lambda: multiply(x).block_until_ready(), {}


def torch(given: dict):
    from experiments import torch_peer

    return torch_peer.start(given["what"], **given["arguments"])


def onnxruntime(given: dict):
    from experiments import onnx_peer

    return onnx_peer.start(**given["arguments"])


def peak_memory() -> int:
    """The most bytes of this process that were resident at a time."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux; there getrusage would tell of the parent too
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def timed(step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    given = ast.literal_eval(sys.stdin.readline())
    start = {"ours": ours, "product": product, "torch": torch, "onnxruntime": onnxruntime}[given["kind"]]
    try:
        step, facts = start(given)
        step()
        facts["first_step_seconds"] = round(time.time() - given["started"], 3)
        step()
    except Exception as error:
        print(first_line(error), file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    answer(facts)
    for _ in sys.stdin:
        seconds = [timed(step) for _ in range(given["steps"])]
        answer((seconds, peak_memory()))


if __name__ == "__main__":
    main()
