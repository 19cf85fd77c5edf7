"""Fingerprints of data: short texts that change with the content or the name of a file.

A copied or moved folder has the fingerprint of the original. The digest of each file is kept in the data
set's folder with the file's size, times and inode, so that a later pass reads only new and changed files.
The time of change, which no program can set, reveals a file whose time of modification was set back. If the
folder cannot be written, the user's cache keeps the digests.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import UnreadableFiles, printable, reason
from alexnet_jax.runtime.files import atomic_write, user_cache

log = logging.getLogger("alexnet_jax")

FILE = ".fingerprints.npz"
BYTES = 16  # of a file's digest
_CHUNK = 64  # files
_RACY = 2_000_000_000  # nanoseconds; a younger file may change again without new times

Stamp = tuple[int, int, int, int]  # size, time of modification, time of change, inode


def stamp(status: os.stat_result) -> Stamp:
    """Return the size, times and inode that identify an unchanged file."""
    # If folders are renamed, the inode distinguishes files written within one tick of the system's clock.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def of_bytes(*parts: bytes) -> bytes:
    """Return the digest of bytes."""
    return hashlib.blake2b(b"".join(parts), digest_size=BYTES).digest()


def combined(*parts: bytes | str) -> str:
    """Return the fingerprint of several parts, in their order."""
    texts = (part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part for part in parts)
    return hashlib.blake2b(b"".join(of_bytes(text) for text in texts), digest_size=8).hexdigest()


def of_names(names: Iterable) -> str:
    """Return the fingerprint of class names, in their order."""
    return combined("\0".join(map(str, names)))


def digests(
    folder: pathlib.Path, files: Sequence[tuple[str, Stamp]], digest: Callable[[str], bytes], what: str
) -> list[bytes]:
    """Return `digest(name)` of each file of a data set's folder, computed only if its stamp is new.

    `files` has names within the folder and their stamps; `what` names the progress in the log. Raises
    UnreadableFiles for all files for which `digest` raises OSError or ValueError, after it has saved the
    digests of the others. The next call tries the failed files again.
    """
    now, kept = time.time_ns(), _load(folder)
    known = {name: kept[name][1] for name, stamp in files if name in kept and kept[name][0] == stamp}
    new = [name for name, _ in files if name not in known]
    if new:
        report, done = progress.Progress(what, len(new), unit="files"), 0
        bad: dict[str, str] = {}

        def digest_of(name: str) -> bytes | Exception:
            try:
                return digest(name)
            except (OSError, ValueError) as error:
                return error

        chunks = [new[start : start + _CHUNK] for start in range(0, len(new), _CHUNK)]
        read = progress.in_order(lambda names: list(map(digest_of, names)), chunks, progress.cores())
        for names, found in zip(chunks, read, strict=True):
            for name, result in zip(names, found, strict=True):
                if isinstance(result, bytes):
                    known[name] = result
                else:
                    bad[printable(folder / name)] = reason(result)
            done += len(names)
            if done < len(new):
                report(done)
        splits = {name.partition("/")[0] for name, _ in files}
        others = {name: entry for name, entry in kept.items() if name.partition("/")[0] not in splits}
        settled = {
            name: (stamp, known[name])
            for name, stamp in files
            if name in known and max(stamp[1:3]) < now - _RACY
        }
        _save(folder, others | settled)
        if bad:
            raise UnreadableFiles(bad)
    return [known[name] for name, _ in files]


def _load(folder: pathlib.Path) -> dict[str, tuple[Stamp, bytes]]:
    entries: dict[str, tuple[Stamp, bytes]] = {}
    for path in _places(folder):  # a read-only folder may have an old file
        with contextlib.suppress(Exception):  # zipfile and NumPy raise nearly any for a damaged file
            with np.load(path, allow_pickle=False) as file:
                names = file["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
                stamps = [tuple(row) for row in file["stamps"].tolist()]
                digests = file["digests"].tobytes()
            rows = [digests[start : start + BYTES] for start in range(0, len(digests), BYTES)]
            entries |= zip(names, zip(stamps, rows, strict=True), strict=True)
    return entries


def _save(folder: pathlib.Path, entries: dict[str, tuple[Stamp, bytes]]) -> None:
    names = "\0".join(entries).encode("utf-8", "surrogateescape")
    arrays = {
        "names": np.frombuffer(names, np.uint8),
        "stamps": np.array([stamp for stamp, _ in entries.values()], np.int64),
        "digests": np.frombuffer(b"".join(digest for _, digest in entries.values()), np.uint8),
    }
    for path in _places(folder):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # of its other arguments
            return
    log.warning(f"{folder}: its fingerprint cannot be saved, and is computed again at each start")


def _places(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the paths where the digests may be, the preferred one first."""
    places, cache = [folder / FILE], user_cache()
    if cache is not None:
        places.append(cache / "fingerprints" / f"{combined(os.path.realpath(folder))}.npz")
    return places
