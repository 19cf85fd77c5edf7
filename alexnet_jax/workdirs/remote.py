"""Runs in an object store: gs://BUCKET/FOLDER and s3://BUCKET/FOLDER.

    run_folder     keep a run that is trained in a store: a local copy within the block
    push           upload what is new in such a copy
    copied         copy a run for reading, within the block

The program works on a local folder. Files are uploaded once they are complete, and an upload that was
interrupted is ignored: a checkpoint counts only if the store has its `commit_success.txt`, which is uploaded
last and deleted first, as Orbax itself does on GCS. A run continues from what the store has. s3fs and gcsfs
are imported only for a URL (runtime/object_store.py); docs/object_storage.md has the rest.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from alexnet_jax.runtime.errors import Diverged, InputError, Unavailable, printable
from alexnet_jax.runtime.files import StrPath, folder_lock, write_text
from alexnet_jax.runtime.object_store import (
    FILES,
    RECORD,
    Objects,
    Store,
    copy_of,
    is_url,
    local_errors,
    read_record,
)

log = logging.getLogger("alexnet_jax")

MARKER = "commit_success.txt"  # of a checkpoint; in the store its text identifies the upload
LOCK = ".lock"
RENEWAL, PATIENCE = 15.0, 60.0  # seconds between renewals of the lock; a lock not renewed for so long is void
_COPIES = 10  # attempts to copy a run that changes meanwhile


def _checkpoint(name: str) -> str | None:
    """Return the folder of a checkpoint that a file is in, or None."""
    parts = name.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 and parts[0] == "checkpoints" else None


def _step(folder: str) -> int:
    """Return the step of a checkpoint's folder, or -1 if it has none, as one that was put aside."""
    step = folder.rpartition("/")[2]
    return int(step) if step.isdecimal() else -1


def _is_marker(name: str) -> bool:
    """Return whether a file marks a checkpoint as complete."""
    return name == f"{_checkpoint(name)}/{MARKER}"


def _is_rating(name: str) -> bool:
    """Return whether a file of a checkpoint may change: it has the metrics of a validation."""
    return name.split("/")[2:3] == ["metrics"]


def _is_of_run(name: str) -> bool:
    """Return whether a name may be a file of a run, and not a temporary one."""
    temporary = name.startswith(".") or name.endswith(".part") or ".orbax-checkpoint-tmp" in name
    folder = _checkpoint(name)
    return not temporary and ("/" not in name or (folder is not None and _step(folder) >= 0))


def _files_in(folder: str) -> dict[str, tuple[int, int]]:
    """Return the size and the time of each file of a run, by name."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in (os.path.relpath(os.path.join(where, name), folder) for name in names):
            if _is_of_run(name):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(os.path.join(folder, name))
                    found[name] = status.st_size, status.st_mtime_ns
    return found


class _Mirror:
    """A run in a store, and its local folder. All methods raise InputError and Unavailable."""

    def __init__(self, store: Store, base: str):
        """Keep the copy in `base`, which this process has locked."""
        self._store, self.folder, self._path = store, os.path.join(base, FILES), os.path.join(base, RECORD)
        record = read_record(self._path)
        self._id = record.get("id") or _new_id()  # of this copy, across processes
        self._program = _new_id()  # of this process alone: copies of a machine have the same id
        self._marks: dict[str, str] = record.get(
            "checkpoints", {}
        )  # of checkpoints that both the folder and the store have
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._ended, self.lost = threading.Event(), ""
        self._save()

    def _save(self) -> None:
        record = {"url": self._store.url, "id": self._id, "checkpoints": self._marks}
        write_text(self._path, json.dumps(record, indent=1) + "\n")

    def fetch(self) -> None:
        """Make the local folder equal to the run in the store, without uploads that were interrupted."""
        objects = self._store.objects()
        marks = _marks(self._store, objects)
        latest = max(map(_step, marks), default=-1)
        for folder in sorted({folder for name in objects if (folder := _checkpoint(name))} - marks.keys()):
            if 0 <= _step(folder) < latest:  # its deletion was interrupted, or nothing will replace it
                self._store.delete(name for name in objects if _checkpoint(name) == folder)
            else:
                log.info(f"{self._store.url}/{folder}: its upload was interrupted; it is ignored")
        # Without a complete checkpoint, the small files may be of an interrupted upload.
        wanted = {name: value for name, value in objects.items() if marks and _is_wanted(name, marks)}
        kept = set()
        for name, (size, _) in _files_in(self.folder).items():
            mark = marks.get(_checkpoint(name) or "", "")
            # Other programs, such as Orbax, give all uploads to a URL the same mark.
            same = re.fullmatch("[0-9a-f]{32}", mark) and self._marks.get(_checkpoint(name) or "") == mark
            if same and not _is_rating(name) and name in wanted and wanted[name][0] == size:
                kept.add(name)
        _keep_only(self.folder, kept)
        self._store.download(self.folder, {name: wanted[name] for name in wanted.keys() - kept})
        self._marks, self._uploaded = marks, _files_in(self.folder)
        self._save()

    def push(self) -> None:
        """Upload new and changed files, and delete the checkpoints that are gone here.

        Raises InputError, and changes nothing, if another program trains the run.
        """
        from alexnet_jax.workdirs.checkpoint import ASIDE  # here, because it imports JAX

        self._check()
        local = _files_in(self.folder)
        if "config.json" in self._uploaded and "config.json" not in local:
            raise InputError(f"{self.folder}: files were deleted; the same command resumes from the store")
        changed = [name for name in local if self._uploaded.get(name) != local[name]]
        folders = {folder for name in local if (folder := _checkpoint(name))}
        rewritten = {_checkpoint(name) for name in changed if not (_is_rating(name) or _is_marker(name))}
        # Rows come first: a checkpoint with an error is to have its row in metrics.jsonl.
        self._store.upload(self.folder, [name for name in changed if not _checkpoint(name)])
        for folder in sorted(folders & self._marks.keys() & rewritten):
            del self._marks[folder]
        for folder in sorted(folders - self._marks.keys()):
            self._delete(folder)  # there may be an interrupted upload
            parts = [name for name in local if _checkpoint(name) == folder and not _is_marker(name)]
            self._store.upload(self.folder, parts)
            self._check()
            mark = _new_id()
            self._store.write(f"{folder}/{MARKER}", mark)
            self._marks[folder] = mark
            self._save()
        self._store.upload(self.folder, [name for name in changed if _checkpoint(name) and _is_rating(name)])
        for folder in sorted(self._marks.keys() - folders):
            # One that cannot be read here was put aside here; the one in the store may be good.
            if not list(pathlib.Path(self.folder, "checkpoints").glob(f"{ASIDE}{_step(folder)}*")):
                self._check()
                self._delete(folder)
        self._uploaded = local

    def _check(self) -> None:
        """Raise InputError if another program trains the run."""
        if not (self.lost or self._is_mine(there := self._store.read(LOCK))):
            self.lost = _owner(there)
        if self.lost:
            raise InputError(f"{self._store.flag}={self._store.url}: {self.lost} trains there now; end one")

    def _delete(self, folder: str) -> None:
        names = [name for name in self._store.objects() if _checkpoint(name) == folder]
        self._store.delete(name for name in names if _is_marker(name))
        self._store.delete(names)
        self._marks.pop(folder, None)
        self._save()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the run, an object that is renewed, within the block."""
        self._take()
        thread = threading.Thread(target=self._renew, daemon=True)
        thread.start()
        try:
            yield
        except Unavailable:
            self.lost = self.lost or "another program"  # this one does not wait for the store again
            raise
        finally:
            self._ended.set()
            thread.join(RENEWAL)
            with contextlib.suppress(InputError):
                if not self.lost and self._is_mine(self._store.read(LOCK)):
                    self._store.delete([LOCK])

    def _take(self) -> None:
        if self._store.write(LOCK, self._text(), new=True):
            return
        first = there = self._store.read(LOCK)
        if there is None:
            self._take()
            return
        # The lock of this copy was left by a killed program: this one has locked the copy.
        if _fields(there).get("copy") != self._id:
            log.info(
                f"{self._store.url}: locked by {_owner(there)}; waiting up to {PATIENCE:.0f} s to see whether"
                " it is still there"
            )
            end = time.monotonic() + PATIENCE
            while there == first and time.monotonic() < end:
                time.sleep(min(RENEWAL / 3, PATIENCE / 10))
                there = self._store.read(LOCK)
            if there not in (first, None):
                where = f"{self._store.flag}={self._store.url}"
                raise InputError(f"{where}: {_owner(there)} trains there; wait, or give another")
            if there is None:
                self._take()
                return
        self._store.write(LOCK, self._text())

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            with contextlib.suppress(InputError):  # the network may return; uploading reports it
                there = self._store.read(LOCK)
                if not self._is_mine(there):
                    self.lost = _owner(there)
                if self.lost or self._ended.is_set():
                    return
                # A later attempt might overwrite the lock of a program that has taken the run over meanwhile.
                self._store.write(LOCK, self._text(), once=True)

    def _text(self) -> str:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return (
            json.dumps(
                {
                    "owner": owner,
                    "copy": self._id,
                    "program": self._program,
                    "time": now,
                    "renewal": _new_id(),
                }
            )
            + "\n"
        )

    def _is_mine(self, content: bytes | None) -> bool:
        return _fields(content).get("program") == self._program


def _new_id() -> str:
    return os.urandom(16).hex()


def _fields(content: bytes | None) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        fields = json.loads(content or b"{}")
        return fields if isinstance(fields, dict) else {}
    return {}


def _owner(content: bytes | None) -> str:
    return printable(str(_fields(content).get("owner", "another program")))


def _marks(store: Store, objects: Objects) -> dict[str, str]:
    """Return the marker of each complete checkpoint."""
    found = {}
    for name in objects:
        folder = _checkpoint(name)
        if folder and _is_marker(name) and (mark := store.read(name)):
            found[folder] = mark.decode(errors="replace").strip()
    return found


def _keep_only(folder: str, kept: set[str]) -> None:
    """Delete all files in a folder but the `kept` ones, and folders without any."""
    for where, folders, names in os.walk(folder, topdown=False):
        for path in (os.path.join(where, name) for name in names):
            if os.path.relpath(path, folder) not in kept:
                os.remove(path)
        for name in folders:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(os.path.join(where, name))


def _is_wanted(name: str, marks: dict[str, str]) -> bool:
    folder = _checkpoint(name)
    return _is_of_run(name) and (folder is None or folder in marks)


_mirrors: dict[str, _Mirror] = {}


def push(workdir: StrPath, ready: Callable[[], Any]) -> None:
    """Upload what is new in the local folder of a run in a store, once `ready()` has returned.

    Does nothing for any other folder. Raises InputError and Unavailable.
    """
    mirror = _mirrors.get(os.fspath(workdir))
    if mirror:
        ready()
        mirror.push()


def _open_alone(flag: str, url: str) -> Store:
    """Open the store of a run. Raises InputError if there are several processes."""
    from alexnet_jax.runtime import processes

    if processes.count() > 1:
        raise InputError(
            f"{flag}={printable(url)}: is for one process; give a folder that all processes share"
        )
    return Store(flag, url)


@contextlib.contextmanager
def run_folder(url: str) -> Iterator[str]:
    """Yield the local folder of a run in a store, locked and as the store has it; upload it at the end.

    Raises InputError if another program trains there, and Unavailable. Within the block, lines of the log and
    errors name the URL.
    """
    flag = "--workdir"
    store = _open_alone(flag, url)
    base = copy_of("runs", store.url)
    with _shown_as(store.url, base), contextlib.ExitStack() as stack:
        with local_errors(base):
            os.makedirs(base, exist_ok=True)
            stack.enter_context(folder_lock(flag, base, "another process trains", "one program trains"))
            mirror = _Mirror(store, base)
        stack.enter_context(mirror.locked())
        mirror.fetch()
        _mirrors[mirror.folder] = mirror
        try:
            yield mirror.folder
        except InputError:  # no training, or no store
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is reported
                mirror.push()
            raise
        finally:
            del _mirrors[mirror.folder]
        mirror.push()


@contextlib.contextmanager
def copied(workdir: StrPath, flag: str = "--workdir", checkpoints: bool = True) -> Iterator[str]:
    """Yield a local copy of a run in a store, without what only resuming needs; upload a new eval.json.

    Any other folder is yielded as it is. Raises InputError and Unavailable.
    """
    url = os.fspath(workdir)
    if not is_url(url):
        yield os.path.expanduser(url)
        return
    store = _open_alone(flag, url)
    with tempfile.TemporaryDirectory(prefix="alexnet_jax-") as folder, _shown_as(store.url, folder):
        _copy(store, folder, checkpoints)
        former = _files_in(folder).get("eval.json")
        yield folder
        if _files_in(folder).get("eval.json") != former:
            store.upload(folder, ["eval.json"])


def _copy(store: Store, folder: str, checkpoints: bool) -> None:
    """Download one consistent state of a run, which another program may be training."""
    here: Objects = {}
    objects = store.objects()
    for _ in range(_COPIES):
        if not objects and checkpoints:
            raise InputError(f"{store.flag}={store.url}: is empty or not there; give the workdir of a run")
        marks = _marks(store, objects) if checkpoints else {}
        wanted = {
            name: value
            for name, value in objects.items()
            if _is_wanted(name, marks) and not re.match(r"checkpoints/[^/]+/rest/|events\.|train\.log", name)
        }
        here = {name: value for name, value in here.items() if wanted.get(name) == value}
        _keep_only(folder, set(here))
        changed = None
        try:
            new = {name: value for name, value in wanted.items() if name not in here}
            store.download(folder, new)
            here = wanted
        except InputError as error:
            changed = error
        objects = store.objects()
        if all(objects.get(name) == value for name, value in wanted.items()):
            if changed:
                raise changed
            return
    raise Unavailable(
        f"{store.flag}={store.url}: a program that trains there changes it faster than it can be copied; the"
        " same command works later"
    )


@contextlib.contextmanager
def _shown_as(url: str, folder: str) -> Iterator[None]:
    """Name the URL instead of its local folder in lines of the log and in errors, within the block."""

    def shown(text: str) -> str:
        return text.replace(os.path.join(folder, FILES), url).replace(folder, url)

    def show(record: logging.LogRecord) -> bool:
        record.msg, record.args = shown(record.getMessage()), ()
        return True

    log.addFilter(show)
    try:
        yield
    except (InputError, Diverged) as error:
        error.args = (shown(str(error)), *error.args[1:])
        raise
    finally:
        log.removeFilter(show)
