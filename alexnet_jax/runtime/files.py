"""Bounded reads, files that are whole or not there, and locks."""

import contextlib
import fcntl
import io
import json
import logging
import os
import pathlib
import re
import select
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from alexnet_jax.runtime.errors import InputError

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


def read_json(path: StrPath, limit: int) -> Any:
    """Return what a file of JSON holds. Raises as `read_file` does, and ValueError if it is no JSON."""
    try:
        return json.loads(read_file(path, limit))
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


@contextlib.contextmanager
def atomic_write(path: StrPath) -> Iterator[BinaryIO]:
    """Open a file to write to, which is at `path` after the block, or not at all if that fails."""
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
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
def folder_lock(folder: StrPath, busy: str, alone: str) -> Iterator[None]:
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
