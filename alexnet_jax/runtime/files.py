"""Bounded reads that outlast a moment's failure, files that are whole or not there, and locks."""

import contextlib
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
PIPE_SECONDS = 10  # a pipe may be silent for so long
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
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        endless = not stat.S_ISREG(status.st_mode)
        content = _read_pipe(file.fileno(), limit + 1) if endless else b""
        if max(len(content), status.st_size) > limit:
            raise ValueError(f"more than {limit:,} bytes")
        return content if endless else file.read()


def stand_in(start: bytes) -> str:
    """Return what stands in place of a download, by its first bytes, and what to do; "" if nothing does."""
    return next((what for pattern, what in _STAND_INS if re.match(pattern, start)), "")


WAITS = (0.1, 0.5, 2.0)  # seconds between the attempts to read a file


def retry(path: StrPath, read: Callable, *args, waits: Sequence[float] | None = None) -> Any:
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


def read_json(path: StrPath, limit: int) -> Any:
    """Read a JSON file of at most `limit` bytes. Raises ValueError if it is damaged, and as `retry` does."""
    return parse_json(retry(path, read_file, path, limit))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also if it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class BoundedReader(io.BufferedReader):
    """Refuse to read more than `limit` bytes at once: a damaged file may state any length."""

    def __init__(self, raw: Any, limit: int):
        """`raw` is an unbuffered file, such as of open(path, "rb", buffering=0)."""
        super().__init__(raw)
        self.limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes. Raises ValueError if more than `limit` are asked for."""
        everything = size is None or size < 0
        content = super().read(self.limit + 1 if everything else min(size or 0, self.limit + 1))
        if len(content) > self.limit:
            raise ValueError(f"a part of it has more than {self.limit:,} bytes")
        return content


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for a pipe's writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_pipe(descriptor: int, most: int) -> bytes:
    """Return what comes until the writer closes its end, at most `most` bytes."""
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
        else:  # a pipe that no writer has opened yet reads as one at its end
            events = poll.poll(1000 * PIPE_SECONDS)
            if not events:
                raise ValueError(f"a pipe or a device that is silent for {PIPE_SECONDS} s")
            if part is not None and not events[0][1] & select.POLLIN:  # its writer came and went
                break
    return bytes(content)


def is_number(value) -> bool:
    """Return whether a value of JSON is a number that is finite and fits a float."""
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


def write_text(path: StrPath, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def file_lock(path: StrPath) -> Iterator[bool]:
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
def folder_lock(flag: str, folder: StrPath, busy: str, alone: str) -> Iterator[None]:
    """Keep other programs out of a folder, which `flag` gave, within the block, by its file .lock.

    Raises InputError, which says `busy`, if another is there, and OSError if the folder cannot be written. A
    file system without locks is a warning to see that `alone` is true.
    """
    with open(os.path.join(folder, ".lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however the process ends
        except BlockingIOError:
            raise InputError(f"{flag}={folder}: {busy} there; wait, or give another") from None
        except OSError:
            log.warning(f"{folder}: this file system has no locks; see that {alone} there")
        yield
