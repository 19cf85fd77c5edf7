"""python -m experiments.benchmarks.hosts --config=configs/NAME.py [--processes=4] [--disk=8] [--out=FILE]
                                          [--config.FIELD=VALUE ...]

Read an epoch of training batches in several processes, as the hosts of a pod do, each with a disk of
`--disk` MB/s. The processes join each other as in training, and each reads the rows of its own device through
training_batches. Print how many images were read, and how many of them twice, and the rate and memory of each
process.
"""

import concurrent.futures
import json
import pathlib
import socket
import threading
import time

import numpy as np

from alexnet_jax import config as configuration
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text
from experiments.benchmarks.program import Program


class Disk:
    """A source whose bytes come at a bounded rate; it keeps the indices that were read."""

    def __init__(self, source, rate: float):
        """Read `source` at `rate` bytes per second."""
        self.label_names, self.folder, self.split = source.label_names, source.folder, source.split
        self.fingerprint = source.fingerprint
        self.read_indices: list[int] = []
        self._source, self._rate, self._lock = source, rate, threading.Lock()
        self._free = time.monotonic()  # when the disk will have delivered all that was asked of it

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Return what the source reads, once the disk has delivered as many bytes."""
        images, labels = self._source.read(indices)
        with self._lock:
            self.read_indices += list(map(int, indices))
            self._free = max(self._free, time.monotonic()) + images.nbytes / self._rate
            wait = self._free - time.monotonic()
        time.sleep(max(wait, 0))
        return images, labels


def start(file: str, overrides: dict, address: str, count: int, index: int, rate: float):
    """Join the other processes; return (turn, facts) for `Program`."""
    from alexnet_jax.datasets.batches import training_batches
    from alexnet_jax.datasets.source import open_source
    from alexnet_jax.runtime import processes
    from alexnet_jax.runtime.mesh import batch_sharding, make_mesh

    config = configuration.load(file, {**overrides, "mesh.column": 1, "mesh.data": count})
    processes.join(address, count, index, 120)
    sharding = batch_sharding(make_mesh(config, ("batch_size",)))
    disk = Disk(open_source(config, "train_split"), rate)

    def turn(steps: int) -> dict:
        begin = time.monotonic()
        memory = [_memory() for _ in training_batches(disk, config, sharding, 0, steps)]
        return {
            "seconds": time.monotonic() - begin,
            "images": len(disk.read_indices),
            "indices": disk.read_indices,
            "memory_mb": [memory[len(memory) // 4], max(memory[len(memory) // 4 :])],
        }

    return turn, {"examples": len(disk), "batch": config.batch_size}


def _memory() -> float:
    """Return the resident memory of this process in MB, including the files that it maps."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def measure(file: str, overrides: dict, count: int, rate: float) -> dict:
    """Read an epoch in `count` processes; return their rates, memory and number of images read twice."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    programs = [
        Program(f"host {index}", start, file, overrides, address, count, index, rate)
        for index in range(count)
    ]
    try:
        facts = [program.facts() for program in programs]
        steps = facts[0]["examples"] // facts[0]["batch"]
        if not steps:
            raise InputError(
                f"batch_size: {facts[0]['batch']} is more than the {facts[0]['examples']} examples"
            )
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            turns = list(pool.map(lambda program: program.turn(steps), programs))
    finally:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:  # together, as they joined
            list(pool.map(Program.stop, programs))
    times = np.bincount(
        np.concatenate([turn.pop("indices") for turn in turns]), minlength=facts[0]["examples"]
    )
    return {"examples": facts[0]["examples"], "steps": steps, "batch": facts[0]["batch"],
            "disk_mb_per_second": rate / 1e6, "read": int((times > 0).sum()),
            "read_twice": int((times > 1).sum()), "hosts": turns}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure, print and write the result. Raises InputError."""
    parser = command_line.Parser(__doc__, config=True)
    parser.add_argument("--processes", metavar="N", type=command_line.whole(1), default=4, help="hosts")
    parser.add_argument("--disk", metavar="MB", type=float, default=8.0, help="MB/s of each host's disk")
    parser.add_argument("--out", metavar="FILE", help="a JSON file for the result")
    given = parser.parse(arguments)
    result = measure(given.config, given.overrides, given.processes, given.disk * 1e6)
    print(f"{result['read']:,} of {result['examples']:,} images read, {result['read_twice']} of them twice")
    for number, host in enumerate(result["hosts"]):
        rate, (before, most) = host["images"] / host["seconds"], host["memory_mb"]
        memory = f"memory {before:.0f} MB after a quarter of the steps, at most {most:.0f} MB from then on"
        print(f"host {number}: {host['images']:,} images, {rate:,.0f} per second; {memory}")
    if given.out:
        write_text(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main)
