"""The mesh `data x column` of devices (section 3.2): `data` splits the batch, `column` the network.

With one column, or all columns on each device, the mesh has the axis `data` alone.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.runtime import processes
from alexnet_jax.runtime.compilation_cache import enable_compilation_cache
from alexnet_jax.runtime.errors import InputError, first_line

AXIS = "column"


def mesh_shape(config, devices: int | None, batches: tuple[str, ...], processes: int = 1) -> tuple[int, int]:
    """Return (data, column) for a number of devices; None means CPU hosts, split into as many as needed.

    Each of several processes has its share of the devices, and all are used. `data` must divide the batches
    of the fields `batches`: batch_size, eval.batch_size. Raises InputError for a mesh that does not fit the
    devices, the network or these batches.
    """
    column, data, columns = config.mesh.column, config.mesh.data, config.model.columns
    if column not in (-1, 1, columns):
        raise InputError(f"mesh.column: {column}, but the network has model.columns={columns}; give -1 or 1")
    if column == -1:
        column = columns if devices is None or columns * max(data, 1) <= devices else 1
    if data == -1:
        # On CPUs, the fewest that give every process the same number of devices.
        data = processes // math.gcd(processes, column) if devices is None else max(devices // column, 1)
    if devices is not None and data * column > devices:
        raise InputError(
            f"mesh: data x column is {data} x {column}, which is more than the {devices} devices found;"
            " lower mesh.data or mesh.column"
        )
    if processes > 1 and (data * column % processes if devices is None else data * column != devices):
        there = "" if devices is None else f" with {devices} devices"
        raise InputError(
            f"mesh: data x column is {data} x {column}, which leaves some of the {processes} processes{there}"
            " without an equal share; change mesh.data, mesh.column or the number of processes"
        )
    for field in batches:
        batch = config.batch_size if field == "batch_size" else config.eval.batch_size
        if batch % data:
            raise InputError(
                f"{field}: {batch} is not a multiple of the {data} devices of mesh.data; change one of them"
            )
        if field == "batch_size" and batch % (data * config.micro_batches):
            raise InputError(
                f"micro_batches: {config.micro_batches} parts do not divide a device's {batch // data} images"
                f" of batch_size={batch}; change one of them"
            )
    return data, column


def make_mesh(config, batches: tuple[str, ...] = ()) -> Mesh:
    """Return a mesh with axes ("data", "column"), or ("data",) if each device runs all columns.

    A host without accelerators is split into as many CPU devices as the mesh needs, or into its share of them
    with several processes. Devices are in the order of their processes, so that a pair is close together.
    """
    enable_compilation_cache()
    hosts = processes.count()
    data, column = mesh_shape(config, None, batches, hosts)
    with contextlib.suppress(RuntimeError):  # JAX has started already, and its devices are fixed
        jax.config.update("jax_num_cpu_devices", data * column // hosts)
    if _platform() != "cpu" or len(jax.devices()) < data * column:
        data, column = mesh_shape(config, len(jax.devices()), batches, hosts)
    shape, names = ((data, column), ("data", AXIS)) if column > 1 else ((data,), ("data",))
    # Not jax.make_mesh, which finds no pairs in some TPU slices, and has its own order of devices.
    devices = np.array(jax.devices()[: data * column]).reshape(shape)
    return Mesh(devices, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def _platform() -> str:
    """Return the platform of the devices, as JAX chooses it.

    Raises InputError if JAX was installed for accelerators, or told to use them, but can use none: nobody
    wants 90 epochs on a CPU by accident.
    """
    config: Any = jax.config  # its options are not attributes of its class
    chosen = config.jax_platforms
    said: list[str] = []
    advice = "; JAX_PLATFORMS=cpu uses the CPU"
    try:
        with _plugins_are_quiet(said):
            platform = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter if no device file is there
        own = re.sub(r" \((set|you may) .*", "", first_line(error)) if str(error) else "no device is found"
        where = f"JAX_PLATFORMS={chosen}" if chosen else "jax"
        raise InputError(f"{where}: cannot be used ({(said or [own])[0]}){advice}") from None
    if platform == "cpu" and not chosen:
        plugins = sorted({entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")})
        plugins += ["libtpu"] * (importlib.util.find_spec("libtpu") is not None)
        if plugins:
            why = f" ({said[0]})" if said else ""
            raise InputError(f"jax: is installed for {', '.join(plugins)}, but finds no device{why}{advice}")
    return platform


@contextlib.contextmanager
def _plugins_are_quiet(said: list[str]) -> Iterator[None]:
    """Collect in `said` why plugins of JAX cannot be loaded. JAX would print a traceback for each."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info and record.exc_info[1]
            if record.levelno >= logging.ERROR:
                said.append(first_line(error if isinstance(error, Exception) else Exception(record.msg)))

    logger, handler = logging.getLogger("jax"), Handler()
    former, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = former, propagate


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds completely."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding over `data`; both columns of a pair have the same images."""
    return NamedSharding(mesh, P("data"))


def block_on_cpu(mesh: Mesh, results):
    """Return the results of a compiled program; on CPUs, wait until they are computed.

    On a CPU, queued programs gain nothing, because they compete for the cores. On two devices, several of
    them may deadlock, each waiting for the other column of another.
    """
    return jax.block_until_ready(results) if mesh.devices.flat[0].platform == "cpu" else results
