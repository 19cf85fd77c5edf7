"""python tests/fuzz.py [--seconds=60] [--seed=0] [--reader=NAME ...]

Mutates valid files of others and gives them to the functions that read them. A reader passes if it returns,
or raises what it documents, in 5 s and with 500 MB of memory more than it had at its start. Each failure is
printed with its traceback, and its file is kept in fuzz-failures/; the exit code is 1 then. The seconds are
shared among the readers. The same seed gives the same inputs. Not a part of `make test`.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from helpers import small_archives as small  # noqa: E402

from alexnet_jax import config as configuration  # noqa: E402
from alexnet_jax.datasets import fingerprints, ilsvrc_archives, images, layouts, statistics  # noqa: E402
from alexnet_jax.pretrained import formats, metadata  # noqa: E402
from alexnet_jax.runtime.errors import InputError  # noqa: E402
from alexnet_jax.workdirs import identity, metrics, workdir  # noqa: E402
from configs import paper  # noqa: E402

SECONDS, MEMORY = 5, 500 << 20  # for one input
FAILURES = pathlib.Path("fuzz-failures")
LENGTHS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)


class Reader(NamedTuple):
    """A function that reads a file of a given name in a folder, valid contents, and what it may raise."""

    file: str
    valid: list[bytes]
    read: Callable[[pathlib.Path], object]
    raises: tuple[type[Exception], ...] = (InputError,)


def pth() -> bytes:
    """A file as of torch.save(state_dict), written by hand."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89N"
    tensor = tensor.replace(b"\x89N", b"\x89ccollections\nOrderedDict\n)R") + b"tR"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}X\x01\0\0\0w" + tensor + b"s.")
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", np.arange(6, dtype="<f4").tobytes())
    return content.getvalue()


def safetensors(**carried: str) -> bytes:
    text = json.dumps({
        "__metadata__": carried,
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }).encode()  # fmt: skip
    return len(text).to_bytes(8, "little") + text + bytes(24)


def field(number: int, content: bytes | int) -> bytes:
    """A field of protobuf, of less than 128 bytes."""
    return (
        bytes([number << 3, content])
        if isinstance(content, int)
        else bytes([number << 3 | 2, len(content)]) + content
    )


def blob() -> bytes:
    shape = b"".join(field(number, size) for number, size in enumerate((1, 1, 2, 3), 1))
    return shape + field(5, np.arange(6, dtype="<f4").tobytes())


def caffemodel() -> bytes:
    layer = field(4, b"conv1") + field(5, 4) + field(6, blob())
    return field(1, b"net") + field(2, layer) + field(2, field(4, b"norm1") + field(5, 15))


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def statistics_npz() -> bytes:
    shapes = ((4, 4, 3), (3,), (3,), (3, 3), (3, 3), (3,))
    arrays = {name: np.ones(shape, np.float32) for name, shape in zip(statistics.ARRAYS, shapes, strict=True)}
    return npz(**arrays, label_names=np.array(["a", "b"]))


def tensors(path: pathlib.Path) -> None:
    with formats.opened(str(path), caffe=True) as weights:
        for name, tensor in weights.tensors.items():
            assert tensor.read().dtype == np.float32 or tensor.dtype != "float32", name
        if "alexnet_jax" in weights.metadata:
            metadata.read(weights.metadata["alexnet_jax"])


def archives(path: pathlib.Path) -> None:
    found = ilsvrc_archives.Archives(path.parent, "2010")
    for split in found.counts:
        for picture in found.images(split):
            with contextlib.suppress(ValueError):
                picture.unpacked()


def tiny_imagenet(path: pathlib.Path) -> None:
    (path.parent.parent / "train" / "n1" / "images").mkdir(parents=True, exist_ok=True)
    layouts.tiny_imagenet(path.parent.parent)


def check_config(path: pathlib.Path) -> None:
    config = workdir.read_config(str(path.parent))
    if config is not None:
        configuration.check(config)


def kept_digests(path: pathlib.Path) -> None:
    stamp = (3, 1, 1)
    fingerprints.digests(path.parent, [("train/a/1.jpg", stamp)], lambda _: bytes(16), "fingerprint")


def result(path: pathlib.Path) -> None:
    found = workdir.read_result(str(path.parent))
    assert not found or found.keys() >= workdir.RESULT_FIELDS


def rows(path: pathlib.Path) -> None:
    kept = path.read_bytes()
    metrics.drop_rows_after(str(path.parent), 2)
    path.write_bytes(kept)
    for row in metrics.read_rows(str(path.parent)):
        f"{row['val_loss']:.4f}"


def pictures() -> list[bytes]:
    found = [content for name, content in small.odd_pictures().items() if name != "gzipped"]
    for kind in ("GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "ICO", "JPEG2000", "AVIF", "QOI"):
        try:
            found.append(small.file_of(small.photograph(0, (40, 30)), kind))
        except (KeyError, OSError):
            continue
    return found


def readers(folder: pathlib.Path) -> dict[str, Reader]:
    small.tiny(folder / "2010", "2010")
    contents = {
        name: (folder / "2010" / file).read_bytes() for name, file in ilsvrc_archives.FILES["2010"].items()
    }
    row = dict.fromkeys(sorted(metrics.FIELDS), 1)
    split = {"classes": ["a", "b"], "examples": 2, "fingerprint": "0"}
    run = {"run": "0", "train": split, "val": split, "origin": {"kind": "drawn"}}
    evaluated = dict.fromkeys(sorted(workdir.RESULT_FIELDS), 1) | {"split": "val", "step": 1}
    kept = npz(names=np.frombuffer(b"train/a/1.jpg", np.uint8), stamps=np.ones((1, 3), np.int64),
               digests=np.zeros(16, np.uint8))  # fmt: skip
    config = json.dumps(paper.get_config().to_dict()).encode()
    stored = statistics.load(io.BytesIO(statistics_npz()))
    carried = metadata.write(metadata.Run(paper.get_config(), "0", 1, stored))
    found = {
        "pth": Reader("a.pth", [pth()], tensors),
        "safetensors": Reader("a.safetensors", [safetensors(), safetensors(alexnet_jax=carried)], tensors),
        "caffemodel": Reader("a.caffemodel", [caffemodel()], tensors),
        "binaryproto": Reader("a.binaryproto", [blob()], lambda path: formats.caffe_blob(str(path))),
        "statistics.npz": Reader("statistics.npz", [statistics_npz()], statistics.load),
        "fingerprints.npz": Reader(fingerprints.FILE, [kept], kept_digests),
        "config.json": Reader("config.json", [config], check_config),
        "identity.json": Reader("identity.json", [json.dumps(run).encode()],
                                lambda path: identity.read(str(path.parent))),
        "eval.json": Reader("eval.json", [json.dumps(evaluated).encode()], result),
        "metrics.jsonl": Reader("metrics.jsonl", [2 * (json.dumps(row).encode() + b"\n")], rows),
        "val_annotations.txt": Reader("val/val_annotations.txt", [3 * b"a.JPEG\tn1\t0\t0\n"], tiny_imagenet),
        "picture": Reader("a.jpg", pictures(),
                          lambda path: images.decode(images.read_file(path), oriented=True), (ValueError,)),
    }  # fmt: skip
    for part, content in contents.items():
        found[f"ilsvrc {part}"] = Reader(ilsvrc_archives.FILES["2010"][part], [content], archives)
    return found


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some changes of a file: bits, bytes, lengths, digits, parts cut, repeated, swapped or moved."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 2, 4, 8, 64, 1024)))
        match draw.randrange(9):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << draw.randrange(8)
            case 1 if data:
                data[min(at, len(data) - 1)] = draw.randrange(256)
            case 2:
                del data[at:]
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end] * draw.choice((1, 2, 100))
            case 5:
                start = draw.randrange(len(data) + 1)
                data[at:end], data[start : start + end - at] = data[start : start + end - at], data[at:end]
            case 6:
                size = draw.choice((1, 2, 4, 8))
                length = draw.choice(LENGTHS) + draw.choice((0, 0, -1, 1))
                data[at : at + size] = (length % 256**size).to_bytes(size, draw.choice(("little", "big")))
            case 7:
                text = draw.choice(
                    (b"-1", b"9" * 30, b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"[" * 5000, b"\0")
                )
                data[at : end if draw.random() < 0.5 else at] = text
            case 8:
                data[at:at] = draw.randbytes(draw.choice((1, 8, 512)))
    return bytes(data)


def mutated_inside(content: bytes, draw: random.Random) -> bytes:
    """As `mutated`, or with checksums that are right: a member of a ZIP or headers of a tar are changed."""
    if draw.random() < 0.3:
        return mutated(content, draw)
    if content.startswith(b"PK"):
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(changed, "w") as new:
            target = draw.choice(old.namelist())
            for name in old.namelist():
                new.writestr(name, mutated(old.read(name), draw) if name == target else old.read(name))
        return changed.getvalue()
    data = bytearray(mutated(content, draw))
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


def worker(name: str, seconds: float, seed: int, results) -> None:
    """Give mutated files to a reader for some seconds. Send (number, file, None or a traceback) for each."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        reader = readers(place)[name]
        draw = random.Random(f"{seed} {name}")
        path = place / ("2010" if name.startswith("ilsvrc") else "file") / reader.file
        path.parent.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_CACHE_HOME"] = folder
        path.write_bytes(reader.valid[0])
        reader.read(path)  # imports what it needs, and shows that what is mutated is valid
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            content = mutated_inside(draw.choice(reader.valid), draw)
            path.write_bytes(content)
            results.send((number, content, "started"))
            start, failure = time.process_time(), None
            try:
                reader.read(path)
            except reader.raises as error:
                if len(str(error).splitlines()) > 1:
                    failure = f"more than one line: {error!s}"
                elif "Unable to allocate" in str(error) or "MemoryError" in str(error):
                    failure = f"took more than {MEMORY:,} bytes: {error!s}"
            except BaseException:
                failure = traceback.format_exc()
            if time.process_time() - start > SECONDS:
                failure = f"took {time.process_time() - start:.1f} s"
            results.send((number, content if failure else b"", failure))
            number += 1
        results.send((number, b"", "done"))


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, int]:
    """Return the numbers of inputs and of failures of a reader."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=worker, args=(name, seconds, seed, there), daemon=True)
    process.start()
    there.close()
    count, failures, content, seen = 0, 0, b"", set()
    while True:
        try:
            if not here.poll(60 + SECONDS):
                raise EOFError
            number, sent, message = here.recv()
        except (EOFError, pickle.UnpicklingError):
            process.kill()
            process.join()
            message, number, sent = (
                f"the process ended or hung (exit code {process.exitcode})",
                count,
                content,
            )
            seen.add("done")
        if message == "started":
            content = sent
            continue
        if message == "done":
            break
        count = number + 1
        if message is not None:
            failures += 1
            last = message.strip().splitlines()[-1]
            if last not in seen:
                seen.add(last)
                FAILURES.mkdir(exist_ok=True)
                file = FAILURES / f"{name.replace(' ', '-')}-{seed}-{number}"
                file.write_bytes(sent)
                print(f"{name}: input {number}, kept as {file}\n{message}", flush=True)
        if "done" in seen:
            break
    process.join()
    return count, failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="for all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="one of them alone; all if left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = list(readers(pathlib.Path(folder)))
    chosen = [name for name in names if name in (given.reader or names)]
    failed = 0
    for name in chosen:
        seconds = given.seconds / len(chosen)
        count, failures = fuzz(name, seconds, given.seed)
        failed += failures
        print(f"{name}: {seconds:.0f} s, {count:,} inputs, {failures:,} failures", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
