"""python -m experiments.scaling [--out=FILE] [--only=v5e:2x2,h100:8,...] [--per_device=128]
                              [--dtype=bfloat16] [--fused]
                              [--config=configs/NAME.py[:ARG]] [--config.FIELD=VALUE ...]

Compile the training step of configs/paper.py ahead of time for TPUs or GPUs that are not there, and tabulate
what the compiler reports per device, with a column on each of two devices and with both on one, for the
paper's global batch of 128 and for one that grows with the devices. The table is written as FILE.json and
FILE.md; that of TPUs has a picture, FILE.png and FILE.pdf. Rows of an earlier FILE.json are kept if program
and compilers have not changed, so that the same command resumes. With `--config` the step is that of another
network, with its own batch only, and there is no picture; `mesh.column` selects one of the two meshes.
v5e:16x16:4 stands for four slices of v5e:16x16.

TPUs need libtpu, whose mere presence makes jax look for a TPU at every start, and GPUs the CUDA plugin:
`make scaling` and `make scaling-gpu` keep them in virtual environments of their own.

    compute            of TPUs: the compiler's cycles of one device's operations in a row, loops included
    the others         of GPUs: XLA's estimate of all but convolutions, exchange included; none for A100
    exchange           the bytes exchanged over the bandwidth of the links, without overlap
    floor of bytes     the bytes that a step must move (benchmarks/compiled.py) at the memory's bandwidth
    floor of FLOP      its products at the peak of the default precision: TF32 (GPUs), a bfloat16 pass (TPUs)
    times the floor    of TPUs: compute over the larger floor; of GPUs: bytes moved over those of the floor

These are estimates, not measurements. GPUs have no rate of images: nothing tells the time of cuDNN's
convolutions. TPUs have one, from compute and exchange.

Peak rates and bandwidths are those that Google and NVIDIA publish (Cloud TPU documentation, "TPU v4", "v5e",
"v6e"; data sheets of H100 SXM and A100 80GB SXM), all links of a device taken together, which a group of few
devices does not use. The clock of v6e is assumed, and so is a network of 50 GB/s a GPU between hosts of 8.
"""

import copy
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import time

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError, first_line, input_errors
from alexnet_jax.runtime.files import write_text

IMAGES, BATCH = 1_281_167, 128
KINDS = ("json", "md", "png", "pdf")
COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax-cuda12-pjrt",)}


GPU_HOST = 8  # GPUs of a host
GPU_NETWORK = 50e9  # bytes per second and GPU between hosts, one way; assumed


@dataclasses.dataclass(frozen=True)
class Device:
    """A device as jax sees it: one of the two TensorCores of a chip of v4, otherwise a whole chip."""

    flops: float  # per second, in the default precision of float32
    flops_bfloat16: float
    memory: float  # bytes per second
    links: float  # bytes per second, its share of the chip's links, one way
    clock: float = 0  # Hz, of a TPU: the published peak over the products of one cycle
    devices: int = 1  # of one chip

    @property
    def platform(self) -> str:
        """Return JAX's name of the kind of device."""
        return "tpu" if self.clock else "cuda"


DEVICES = {
    "v4": Device(275e12 / 2, 275e12 / 2, 1228e9 / 2, 300e9 / 2, clock=1.05e9, devices=2),
    "v5e": Device(197e12, 197e12, 819e9, 200e9, clock=1.5e9),
    "v6e": Device(918e12, 918e12, 1640e9, 400e9, clock=1.75e9),
    "h100": Device(494.7e12, 989.4e12, 3352e9, 450e9),
    "a100": Device(156e12, 312e12, 2039e9, 300e9),
}
TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16", "v4:2x2x1", "v6e:2x2")


def _devices(topology: str) -> np.ndarray:
    """Return the devices of a topology, in the order of a mesh. Raises InputError."""
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    options: dict = dict(platform="tpu", topology_name=topology)
    if topology.count(":") == 2:  # slices
        name, _, slices = topology.rpartition(":")
        kind, options = (
            name.partition(":")[0],
            dict(platform="tpu", topology_name=name, num_slices=int(slices)),
        )
    if DEVICES[kind].platform == "cuda":
        target = pathlib.Path(__file__).parent / "benchmarks" / "gpus" / f"{kind}.txtpb"
        number = int(shape)
        of_host = min(number, GPU_HOST)
        layout = f"1x{number // of_host}x{of_host}"  # slices, hosts, devices of a host
        options = dict(platform="cuda", target_config=target.read_text(), topology=layout)
    try:
        return np.array(topologies.get_topology_desc(**options).devices)
    except Exception as error:  # libtpu and the plugin have none of their own
        what = "libtpu" if DEVICES[kind].platform == "tpu" else "the CUDA plugin"
        raise InputError(
            f"--only={topology}: cannot be compiled for ({first_line(error)[:100]}); is {what} installed?"
        ) from None


def lowered_step(topology: str, columns: int, batch: int, config):
    """Return (the configuration, the number of devices, its training step for them).

    `batch` is the global one, or minus that of each device.
    """
    import jax
    import jax.numpy as jnp
    import ml_collections
    from jax.sharding import AxisType, Mesh

    from alexnet_jax import optimizer
    from alexnet_jax.runtime.mesh import batch_sharding, replicated
    from alexnet_jax.step import abstract_state, make_train_step

    devices = _devices(topology)
    config = copy.deepcopy(config)
    config.batch_size = batch if batch > 0 else -batch * len(devices)
    config = ml_collections.FrozenConfigDict(config)
    names = ("data", "column")[:columns]
    grid = devices.reshape(-1, columns) if columns > 1 else devices
    mesh = Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))
    tx = optimizer.make(config, IMAGES)

    def placed(sharding, dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    split, everywhere = batch_sharding(mesh), replicated(mesh)
    channels, size = config.data.channels, config.data.image_size
    image = size, size, channels
    shapes = dict(mean_image=image, channel_mean=(channels,), channel_std=(channels,),
                  eigenvectors=(channels, channels), standard_deviations=(channels,))  # fmt: skip
    statistics = {name: placed(everywhere, jnp.float32, *shape) for name, shape in shapes.items()}
    images = placed(split, jnp.uint8, config.batch_size, *image)
    labels = placed(split, jnp.int32, config.batch_size)
    state = abstract_state(config, mesh, tx)
    step = make_train_step(config, mesh, tx)
    return config, len(devices), step.lower(state, images, labels, statistics)


def _fingerprint(topology: str, config, lowered) -> str:
    """Return a fingerprint of all that decides a row: program, options, compilers, devices, and this code."""
    compilers = ("jax", "jaxlib", *COMPILERS[DEVICES[topology.partition(":")[0]].platform])
    versions = [importlib.metadata.version(name) for name in compilers]
    options = config.num_epochs, config.mesh.deterministic, DEVICES[topology.partition(":")[0]], GPU_NETWORK
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    code = pathlib.Path(__file__).with_name("benchmarks") / "compiled.py"
    parts = [topology, *versions, repr(options), *flags, code.read_text(), lowered.as_text()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def row(case: tuple, known: dict[str, dict]) -> dict:
    """Return the row of the table for one of `cases`; `known` maps programs to earlier rows."""
    from experiments.benchmarks import compiled  # and with it jax, which reads the environment once

    topology, columns, _, config = case
    config, devices, lowered = lowered_step(*case)
    fingerprint = _fingerprint(topology, config, lowered)
    if fingerprint in known:
        return known[fingerprint]
    # XLA has no model of an A100's kernels.
    options = {"xla_gpu_collect_cost_model_stats": True} if topology.startswith("h100") else None
    start = time.monotonic()
    step = lowered.compile(options)
    seconds = time.monotonic() - start
    program, memory, batch = step.as_text(), step.memory_analysis(), config.batch_size
    device, sent = DEVICES[topology.partition(":")[0]], compiled.exchanged(program, columns)
    peak = device.flops_bfloat16 if config.model.dtype == "bfloat16" else device.flops
    moved, flop = compiled.floors(config, batch, devices // columns, columns)
    links = device.links if device.platform == "tpu" or devices <= GPU_HOST else GPU_NETWORK
    exchange = sent["column"] / device.links + sent["data"] / links
    if device.platform == "tpu":
        compute = compiled.cycles(program) / device.clock
        images_per_second = batch / (compute + exchange)
        hours = IMAGES * config.num_epochs / images_per_second / 3600
        own = {
            "compute_ms": 1e3 * compute,
            "times_floor": compute / max(moved / device.memory, flop / peak),
            "images_per_second": images_per_second,
            "days": hours / 24,
            "device_hours": hours * devices,
        }
    else:
        found = compiled.traffic(program)
        own = {
            "launches": found.launches,
            "convolutions": found.convolutions,
            "kernels_ms": 1e3 * found.estimated if found.estimated else None,
            "moved_gb": found.moved / 1e9,
            "times_floor": found.moved / moved,
        }
    return {
        "topology": topology,
        "devices": devices,
        "mesh": [devices // columns, columns],
        "dtype": config.model.dtype,
        "fused": config.mesh.fused,
        "program": fingerprint,
        "global_batch": batch,
        "gflop": flop / 1e9,
        "memory_mb": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6,
        "column_mb": sent["column"] / 1e6,
        "data_mb": sent["data"] / 1e6,
        "exchange_ms": 1e3 * exchange,
        "floor_bytes_ms": 1e3 * moved / device.memory,
        "floor_flop_ms": 1e3 * flop / peak,
        "compile_s": seconds,
        **own,
    }


def cases(topologies, per_device: int) -> list[tuple[str, int, int]]:
    """Return the first arguments of `lowered_step` for every line of the table."""
    return [
        (topology, columns, batch)
        for topology in topologies
        for batch in (BATCH, -per_device)
        for columns in (1, 2)
        if batch < 0 or _number(topology) // columns <= BATCH
        if _number(topology) >= columns
        if (batch, per_device * _number(topology)) != (-per_device, BATCH)  # the same line again
    ]


def _number(topology: str) -> int:
    kind, _, chips = topology.partition(":")
    return DEVICES[kind].devices * math.prod(int(n) for n in re.split("[x:]", chips))


COLUMNS = {  # key of a row: (its head, its format)
    "global_batch": ("global batch", ",d"),
    "gflop": ("GFLOP", ".1f"),
    "memory_mb": ("memory, MB", ",.0f"),
    "launches": ("launches", "d"),
    "convolutions": ("of them cuDNN's convolutions", "d"),
    "kernels_ms": ("the others, ms", ".2f"),
    "moved_gb": ("GB moved", ".2f"),
    "column_mb": ("over `column`, MB", ".2f"),
    "data_mb": ("over `data`, MB", ".0f"),
    "compute_ms": ("compute, ms", ".2f"),
    "exchange_ms": ("exchange, ms", ".2f"),
    "floor_bytes_ms": ("floor of bytes, ms", ".2f"),
    "floor_flop_ms": ("floor of FLOP, ms", ".2f"),
    "times_floor": ("times the floor", ".2f"),
    "images_per_second": ("images/s", ",.0f"),
    "days": ("all epochs, days", ".3f"),
    "device_hours": ("device-hours", ",.1f"),
}


def markdown(rows: list[dict]) -> str:
    """Return the table."""
    columns = {key: column for key, column in COLUMNS.items() if key in rows[0]}
    head = ("devices", "mesh", *(head for head, _ in columns.values()))
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        devices = f"{r['topology']} ({r['devices']})" + ", bfloat16" * (r["dtype"] == "bfloat16")
        devices += ", fused" * r["fused"]
        numbers = ("-" if r[key] is None else format(r[key], kind) for key, (_, kind) in columns.items())
        lines.append("| " + " | ".join((devices, "{} x {}".format(*r["mesh"]), *numbers)) + " |")
    if any(r["topology"].startswith("v6e") for r in rows):
        lines += ["", f"v6e: a clock of {DEVICES['v6e'].clock / 1e9} GHz is assumed."]
    return "\n".join(lines) + "\n"


def _former(path: str) -> list[dict]:
    """Return the rows of an earlier table."""
    if not os.path.exists(path):
        return []
    with input_errors(f"{path}: is not a table", "give another --out", (ValueError, OSError)):
        return json.loads(pathlib.Path(path).read_text())


def main(arguments: list[str]) -> None:
    """Write the table and its picture, a line as soon as it is there. Raises InputError."""
    parser = command_line.Parser(__doc__, config=True)
    parser.add_argument(
        "--out", metavar="FILE", default="experiments/results/scaling/scaling", help="where to write"
    )
    parser.add_argument("--only", metavar="V5E:2X2,...", default=",".join(TOPOLOGIES), help="which devices")
    parser.add_argument("--dtype", type=command_line.one_of("float32", "bfloat16"), help="model.dtype")
    parser.add_argument(
        "--per_device",
        metavar="N",
        type=command_line.whole(1),
        default=BATCH,
        help="images per device, for the batch that grows with the devices",
    )
    parser.add_argument("--fused", action="store_true", help="mesh.fused")
    given = parser.parse(arguments)
    topologies = given.only.split(",")
    for topology in topologies:
        tpus, gpus = (
            "|".join(kind for kind, device in DEVICES.items() if device.platform == platform)
            for platform in ("tpu", "cuda")
        )
        if not re.fullmatch(
            rf"({tpus}):[1-9]\d*(x[1-9]\d*)+(:[1-9]\d*)?|({gpus}):([1248]|16|32|64|128|256|512)", topology
        ):
            known = f"{', '.join(TOPOLOGIES)}, h100:1, a100:8"
            raise InputError(f"--only={topology}: give {known}, or others like them")
    if len({DEVICES[topology.partition(":")[0]].platform for topology in topologies}) > 1:
        raise InputError("--only: TPUs and GPUs have tables of their own; give either")
    for kind in KINDS:
        command_line.check_writable("--out", f"{given.out}.{kind}")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # a killed program would leave a lock file
    os.environ["JAX_PLATFORMS"] = "cpu"  # the libraries compile; nothing runs on a device
    from alexnet_jax.runtime.mesh import mesh_shape  # and with it jax, which reads the environment once

    former = _former(f"{given.out}.json")
    known = {row["program"]: row for row in former if "program" in row}
    rows, start, todo = [], time.monotonic(), cases(topologies, given.per_device)
    own = ({"model.dtype": given.dtype} if given.dtype else {}) | (
        {"mesh.fused": True} if given.fused else {}
    )
    config = configuration.load(given.config or "configs/paper.py", own | given.overrides)
    if given.config:
        for topology in topologies:
            mesh_shape(config, _number(topology), ())  # checks mesh.column and mesh.data
        meshes = sorted({1, config.model.columns}) if config.mesh.column == -1 else [config.mesh.column]
        todo = [
            (topology, columns, config.batch_size)
            for topology in topologies
            for columns in meshes
            if _number(topology) >= columns
        ]
        for topology, columns, batch in todo:
            parts = _number(topology) // columns * config.micro_batches
            if batch % parts:
                raise InputError(
                    f"batch_size: {batch} images do not split evenly over {parts} parts ({topology})"
                )
    for number, case in enumerate(todo, 1):
        rows.append(row((*case, config), known))
        others = [other for program, other in known.items() if program not in {r["program"] for r in rows}]
        last = number == len(todo)
        write_text(f"{given.out}.json", json.dumps(rows if last else rows + others, indent=1) + "\n")
        write_text(f"{given.out}.md", markdown(rows))
        left = (time.monotonic() - start) / number * (len(todo) - number)
        r = rows[-1]
        print(f"{number} of {len(todo)}: {r['topology']}, mesh {r['mesh']}, batch {r['global_batch']}:"
              f" {r['times_floor']:.2f} times the floor; {left:.0f} s left", flush=True)  # fmt: skip

    if "launches" in rows[0] or given.config:
        return
    from experiments.plots import common, scaling

    common.save(scaling.draw(rows, BATCH), [f"{given.out}.{kind}" for kind in KINDS[2:]])


if __name__ == "__main__":
    command_line.run(main)
