"""Data sets in an object store, as `data.dir`: gs://BUCKET/FOLDER and s3://BUCKET/FOLDER."""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import shutil
import time

from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import file_lock, write_text
from alexnet_jax.runtime.object_store import (
    FILES,
    PARTS,
    RECORD,
    Store,
    copy_of,
    local_errors,
    read_record,
)

_SAVED = 60.0  # seconds between two records of a download
_used: dict[str, int] = {}  # folder -> the descriptor of its file .used, locked until this process ends


@functools.cache  # the splits of a data set are opened one by one
def data_folder(url: str, name: str = "") -> str:
    """Return the local copy of a data set in a store, of the part `name` of data.dir, once it is complete.

    Objects that are new or changed since the last call are downloaded first. Other processes may use the copy
    at the same time. Raises Unavailable, and InputError, also if one of them uses files that have changed in
    the store.
    """
    store = Store("data.dir", url)
    base = copy_of("data", store.url)
    folder, path = os.path.join(base, FILES), os.path.join(base, RECORD)
    with contextlib.ExitStack() as stack:
        with local_errors(base):
            os.makedirs(base, exist_ok=True)
            alone = stack.enter_context(file_lock(os.path.join(base, ".lock")))
            if base not in _used:
                _used[base] = os.open(os.path.join(base, ".used"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            stack.callback(_lock, _used[base], fcntl.LOCK_SH)
        start = f"{name}/" if name else ""
        objects = {
            key: value
            for key, value in store.objects().items()
            if key.startswith(start) and not any(part.startswith(".") for part in key.split("/"))
        }
        if not objects:
            what = f"has no {name}; prepare it in a folder, and copy that there" if name else "is empty"
            raise InputError(f"data.dir: {store.url} {what}")
        # The version of each file that is here; an empty version marks a file that may be incomplete.
        there = {key: tuple(value) for key, value in read_record(path).items() if isinstance(value, list)}
        new = {
            key: value
            for key, value in objects.items()
            if there.get(key) != value or not os.path.exists(os.path.join(folder, key))
        }
        old = [key for key in there if key.startswith(start) and (key in new or key not in objects)]
        if any(there[key] for key in old) and not _lock(_used[base], fcntl.LOCK_EX):
            raise InputError(
                f"data.dir: {store.url} has changed, but another program reads the copy of its former state;"
                " wait until it ends, or set XDG_CACHE_HOME to another folder"
            )

        def save() -> None:
            with local_errors(base):
                write_text(path, json.dumps(there) + "\n")

        saved = time.monotonic()

        def done(key: str) -> None:
            nonlocal saved
            there[key] = objects[key]
            if time.monotonic() > saved + _SAVED:  # so that a killed download goes on
                save()
                saved = time.monotonic()

        if new or old:
            there |= dict.fromkeys([*old, *new], ())
            save()
            with local_errors(base):
                for key in old:
                    pathlib.Path(folder, key).unlink(missing_ok=True)
                    if key not in new:
                        del there[key]
            for left in pathlib.Path(folder).glob(f"{PARTS}*") if alone else ():
                shutil.rmtree(left, ignore_errors=True)
            try:
                store.download(folder, new, done)
            finally:
                save()
    return folder


def _lock(file: int, kind: int) -> bool:
    """Lock a file; return False if another process has locked it, and True on a file system without locks."""
    with contextlib.suppress(OSError):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
