"""Files that are whole or not there, and locks."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from typing import BinaryIO

log = logging.getLogger("alexnet_jax")


@contextlib.contextmanager
def atomic_write(path) -> Iterator[BinaryIO]:
    """Open a file to write to, which is at `path` after the block, or not at all if that fails."""
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(part)


def write_text(path: str, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def file_lock(path) -> Iterator[bool]:
    """Within the block no other process is in an `file_lock` block of the same file `path`; waits for it.

    Yields True, or False on a file system that has no locks. Where True, what lies half written beside
    `path` is nobody's: its writer was killed. Raises OSError if `path` cannot be written.
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
