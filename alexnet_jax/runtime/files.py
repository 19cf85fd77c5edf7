"""Files that are whole or not there, reads that outlast a moment's failure, and locks."""

import contextlib
import fcntl
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from alexnet_jax.runtime.errors import TRANSIENT, InputError, Unavailable, reason, system_error

log = logging.getLogger("alexnet_jax")

WAITS = (0.1, 0.5, 2.0)  # seconds between the attempts to read a file


def retry(path: str | os.PathLike, read: Callable, *args, waits: Sequence[float] | None = None) -> Any:
    """Return read(*args), which reads `path`, after several attempts if the system fails for the moment.

    Raises Unavailable if it goes on failing, or if reading is forbidden. Any other exception, such as that of
    damaged content or of a missing file, passes through at once.
    """
    left = list(WAITS if waits is None else waits)
    while True:
        try:
            return read(*args)
        except Exception as error:
            cause = system_error(error)
            forbidden = isinstance(cause, PermissionError)
            if cause is None or not (forbidden or cause.errno in TRANSIENT):
                raise
            if forbidden or not left:
                line = f"{os.fspath(path)}: cannot be read now ({reason(cause)}); try again"
                raise Unavailable(line) from None
        time.sleep(left.pop(0))


def read_bytes(path: str | os.PathLike) -> bytes:
    """Read a file. Raises Unavailable, and OSError if there is no such file."""
    return retry(path, pathlib.Path(path).read_bytes)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file. Raises ValueError if it is damaged, Unavailable, and OSError if there is none."""
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also if it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_number(value) -> bool:
    """Return whether a value of JSON is a number that is finite and fits a float."""
    with contextlib.suppress(OverflowError):
        return type(value) in (int, float) and math.isfinite(value)
    return False


def list_folder(path: str | os.PathLike) -> list[str]:
    """Return the names in a folder, none if there is no such folder. Raises Unavailable."""
    try:
        return retry(path, os.listdir, path)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def atomic_write(path) -> Iterator[BinaryIO]:
    """Open a file to write to, which is at `path` after the block, or not at all if that fails.

    An OSError names `path`.
    """
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            os.remove(part)


def user_cache() -> pathlib.Path | None:
    """Return this project's folder in the user's cache, which may not exist yet, or None without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # "~" stays without a home
    return pathlib.Path(cache, "alexnet_jax") if os.path.isabs(cache) else None


def write_text(path: str, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def file_lock(path) -> Iterator[bool]:
    """Wait until no other process holds the lock of the file `path`, and hold it within the block.

    Yield True, or False on a file system that has no locks. If True, what lies half written beside `path` is
    nobody's: its writer was killed. Raises OSError if `path` cannot be written.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info(f"waiting for another process, which is preparing the same data ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


@contextlib.contextmanager
def folder_lock(folder: str, busy: str, alone: str) -> Iterator[None]:
    """Keep other programs out of a folder within the block, by its file .lock.

    Raises InputError, which says `busy`, if another is there, and OSError if the folder cannot be written. A
    file system without locks is a warning to see that `alone` is true.
    """
    with open(os.path.join(folder, ".lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however the process ends
        except BlockingIOError:
            raise InputError(f"--workdir={folder}: {busy} there; wait, or give another") from None
        except OSError:
            log.warning(f"{folder}: this file system has no locks; see that {alone} there")
        yield
