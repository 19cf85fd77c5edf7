"""Bounded reads that survive temporary failures, files that are complete or missing, and locks."""

import contextlib
import errno
import fcntl
import io
import json
import logging
import math
import os
import pathlib
import re
import select
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from alexnet_jax.runtime.errors import TRANSIENT, InputError, Unavailable, reason, system_error

log = logging.getLogger("alexnet_jax")

StrPath = str | os.PathLike[str]
PIPE_SECONDS = 10  # a pipe may be silent for this time
_CHUNK = 1 << 20  # bytes
_STAND_INS = (
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself; get it with git lfs pull"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)",
     "a web page, not the file itself; download it again"),
)  # fmt: skip


def read_file(path: StrPath, limit: int) -> bytes:
    """Return the content of a file, a pipe or a device.

    Raises OSError, and ValueError if it has more than `limit` bytes or a pipe is silent for PIPE_SECONDS.
    """
    # Calls of the system alone: a folder may have a million small files, and Python's own file objects take
    # half as long again.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe's writer may never come
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if stat.S_ISREG(status.st_mode):
            within = status.st_size <= limit
            content = _read_regular(descriptor, status.st_size) if within else b""
        else:
            content = _read_pipe(descriptor, limit + 1)
            within = len(content) <= limit
        if not within:
            raise ValueError(f"more than {limit:,} bytes")
        return content
    finally:
        os.close(descriptor)


def stand_in(start: bytes) -> str:
    """Return what a file is instead of the download, by its first bytes, and the remedy; "" for others."""
    return next((what for pattern, what in _STAND_INS if re.match(pattern, start)), "")


WAITS = (0.1, 0.5, 2.0)  # seconds between the attempts to read a file


def retry(path: StrPath, read: Callable, *args, waits: Sequence[float] | None = None) -> Any:
    """Return read(*args), which reads `path`, with several attempts if the system fails temporarily.

    Raises Unavailable if it still fails, or if reading is forbidden. Any other exception, for example for
    damaged content or a missing file, passes through at once.
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


def read_json(path: StrPath, limit: int) -> Any:
    """Read a JSON file of at most `limit` bytes. Raises ValueError if it is damaged, and as `retry` does."""
    return parse_json(retry(path, read_file, path, limit))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also for too deep nesting."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class BoundedReader(io.BufferedReader):
    """Reject reads of more than `limit` bytes at once, because a damaged file may state any length."""

    def __init__(self, raw: Any, limit: int):
        """Read from an unbuffered file, such as open(path, "rb", buffering=0)."""
        super().__init__(raw)
        self.limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes. Raises ValueError if these are more than `limit`."""
        everything = size is None or size < 0
        content = super().read(self.limit + 1 if everything else min(size or 0, self.limit + 1))
        if len(content) > self.limit:
            raise ValueError(f"a part of it has more than {self.limit:,} bytes")
        return content


def _read_regular(descriptor: int, size: int) -> bytes:
    """Return the content of a file to its end; `size` is the system's, 0 for files that it makes up."""
    content = os.read(descriptor, size + 1)
    if len(content) == size:
        return content
    parts = [content]
    while parts[-1]:
        parts.append(os.read(descriptor, _CHUNK))
    return b"".join(parts)


def _read_pipe(descriptor: int, most: int) -> bytes:
    """Return the bytes until the writer closes its end, but at most `most`."""
    content, poll = bytearray(), select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(content) < most:
        part = None  # None: nothing yet
        with contextlib.suppress(BlockingIOError):
            part = os.read(descriptor, min(_CHUNK, most - len(content)))
        if part:
            content += part
        elif part is not None and content:
            break
        else:  # a pipe that no writer has opened yet reads like one at its end
            events = poll.poll(1000 * PIPE_SECONDS)
            if not events:
                raise ValueError(f"a pipe or a device that is silent for {PIPE_SECONDS} s")
            if part is not None and not events[0][1] & select.POLLIN:  # the writer wrote nothing and closed
                break
    return bytes(content)


def is_number(value) -> bool:
    """Return whether a value of JSON is a finite number that fits a float."""
    with contextlib.suppress(OverflowError):
        return type(value) in (int, float) and math.isfinite(value)
    return False


def list_folder(path: StrPath) -> list[str]:
    """Return the names in a folder, none if there is no such folder. Raises Unavailable."""
    try:
        return retry(path, os.listdir, path)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def atomic_write(path: StrPath) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `path` after the block, or not at all if the block fails.

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
    """Return this project's folder in the user's cache, which may not exist, or None without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # "~" stays without a home
    return pathlib.Path(cache, "alexnet_jax") if os.path.isabs(cache) else None


def write_text(path: StrPath, text: str) -> None:
    """Write a text file, completely or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def file_lock(path: StrPath) -> Iterator[bool]:
    """Wait until no other process holds the lock of the file `path`, and hold it within the block.

    Yield True, or False on a file system without locks. If True, any half-written files beside `path` were
    left by a killed process. Raises OSError if `path` cannot be written.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info(f"waiting for another process that prepares the same data ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


@contextlib.contextmanager
def folder_lock(flag: str, folder: StrPath, busy: str, alone: str) -> Iterator[None]:
    """Lock a folder, which `flag` gave, against other programs within the block, by its file .lock.

    Raises InputError with the words `busy` if another program is there, and OSError if the folder cannot be
    written. On a file system without locks, log a warning to make sure that `alone` is true.
    """
    with open(os.path.join(folder, ".lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the process ends
        except BlockingIOError:
            raise InputError(f"{flag}={folder}: {busy} there; wait, or give another") from None
        except OSError:
            log.warning(f"{folder}: this file system has no locks; make sure that {alone} there")
        yield
