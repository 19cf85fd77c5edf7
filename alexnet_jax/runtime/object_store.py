"""The objects below gs://BUCKET/FOLDER or s3://BUCKET/FOLDER through gcsfs or s3fs, and local copies.

workdirs/remote.py keeps runs there, and datasets/remote.py reads data sets. Any error of the clients becomes
one line, and no call waits for ever. They are imported when a `Store` is opened.
"""

import contextlib
import errno
import functools
import hashlib
import importlib
import itertools
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from alexnet_jax.runtime import progress
from alexnet_jax.runtime.errors import InputError, Unavailable, printable, reason
from alexnet_jax.runtime.files import StrPath, read_json, user_cache

log = logging.getLogger("alexnet_jax")

_CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}
_FORM = "expected gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
PARTS = ".parts-"  # prefix of a folder with incomplete downloads
FILES, RECORD = "files", "record.json"  # in the folder of a URL's copy
_LARGEST = 256 << 20  # bytes of a record, which has a line per file
_SECONDS, _SLOWEST = 60.0, 100_000  # time for a request, and bytes per second of a slow network
_CONNECTING, _SILENT = 10, 30  # seconds until a request fails without a connection, or without a byte
_AT_ONCE, _PARTS_AT_ONCE = 8, 2  # files, and parts of a file, of 50 MB each in memory

_THERE = "PreconditionFailed|ConditionalRequestConflict"  # an object that must be new, but exists
_DENIED, _CREDENTIALS = "(?i)forbidden|accesskey|signature", "(?i)credential|anonymous|token"
_MOVED = getattr(errno, "EREMCHG", None)  # s3fs: the bucket is in another region

Objects = dict[str, tuple[int, str]]  # name below the URL -> size, and the version that the store gives


def is_url(path: StrPath) -> bool:
    """Return whether a path names an object store."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(path)) is not None


class _NotImplemented(Unavailable):
    """The server does not implement an operation."""


class Store:
    """The objects below a URL. All methods take a bounded time, and raise InputError and Unavailable."""

    def __init__(self, flag: str, url: str):
        """Check a URL, which `flag` gave, and open a client for it."""
        found = re.fullmatch(r"(\w+)://([\w.-]+)((?:/[^/?*#\[\]\\\x00-\x1f\x7f]+)+)/*", url)
        if not found or found[1] not in _CLIENTS or {".", ".."} & set(found[3].split("/")):
            raise InputError(f"{flag}={printable(url)}: {_FORM}")
        self.flag, self.url, self._root = flag, url.rstrip("/"), found[2] + found[3]
        module = _CLIENTS[found[1]]
        self._answered = False
        try:
            kind, options = _client(module)
        except ImportError as error:
            name = (error.name or module).partition(".")[0]
            raise InputError(f"{flag}={self.url}: needs {name}; pip install 'alexnet_jax[storage]'") from None
        logging.getLogger(module).setLevel(logging.CRITICAL)  # it also raises
        try:
            self._files: Any = kind(skip_instance_cache=True, use_listings_cache=False, **options)
        except Exception as error:  # see `_explained`
            raise self._explained(error) from None
        # Otherwise aiohttp also reports a failed request here, with a traceback.
        self._files.loop.set_exception_handler(lambda *_: None)

    def objects(self) -> Objects:
        """Return all objects."""
        # A large data set has many pages of names.
        find = functools.partial(self._files._find, self._root, detail=True)  # noqa: SLF001
        found = self._run(self._repeated(find, 10 * _SECONDS), 10 * _SECONDS)
        start = self._root + "/"
        return {
            name.removeprefix(start): (
                int(info["size"]), str(info.get("ETag") or info.get("etag") or info.get("generation"))
            )
            for name, info in found.items()
            if name.startswith(start) and info["type"] == "file"
            and not {"", ".", ".."} & set(name.removeprefix(start).split("/"))  # a local file has its name
        }  # fmt: skip

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, or None if there is none."""
        read = functools.partial(self._files._cat_file, self._path(name))  # noqa: SLF001
        with contextlib.suppress(FileNotFoundError):
            return self._run(self._repeated(read), missing=True)
        return None

    def write(self, name: str, text: str, new: bool = False, once: bool = False) -> bool:
        """Write a small object; return False if it must be `new` but exists. `once`: do not try again."""
        if new and self.read(name) is not None:
            return False
        write, path = self._files._pipe_file, self._path(name)  # noqa: SLF001
        mode = "create" if new else "overwrite"
        try:
            call = functools.partial(write, path, text.encode(), mode=mode)
            self._run(call() if once else self._repeated(call))
        except FileExistsError:
            return False
        except _NotImplemented:
            if not new:
                raise
            return self.write(name, text)  # some servers with S3's protocol cannot do better
        return True

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; one that is gone already is not an error."""
        self._all(self._delete, [(name, 0) for name in names])

    def upload(self, folder: str, names: Iterable[str]) -> None:
        """Upload files of a folder. An object appears, or is replaced, as a whole."""
        sizes = [(name, os.path.getsize(os.path.join(folder, name))) for name in names]
        self._all(functools.partial(self._upload, folder), sizes)

    def download(self, folder: str, objects: Objects, done: Callable[[str], Any] = len) -> None:
        """Download objects into a folder, each completely or not at all; call `done` with each name.

        Log their number and size, and the progress of a long download.
        """
        if not objects:
            return
        sizes = [(name, size) for name, (size, _) in objects.items()]
        total, free = sum(size for _, size in sizes), 0
        with local_errors(folder):
            os.makedirs(folder, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if total > free:
                raise InputError(
                    f"{self.flag}={self.url}: its copy takes {_in_bytes(total)}, but {folder} has"
                    f" {_in_bytes(free)} left; make room, or set XDG_CACHE_HOME to a folder on another disk"
                )
            for parent in {os.path.dirname(os.path.join(folder, name)) for name in objects}:
                os.makedirs(parent, exist_ok=True)
            parts = tempfile.TemporaryDirectory(prefix=PARTS, dir=folder, ignore_cleanup_errors=True)
        log.info(
            f"fetching {len(objects):,} file{'s' * (len(objects) > 1)} ({_in_bytes(total)}) of {self.url}"
        )
        report, count = progress.Progress("fetched", len(objects), unit="files"), 0

        def one(name: str) -> None:
            nonlocal count
            count += 1
            done(name)
            if count < len(objects):
                report(count)

        with parts as where:
            incomplete = (os.path.join(where, str(number)) for number in itertools.count())
            self._all(functools.partial(self._download, folder, objects, incomplete, one), sizes)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    async def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self._files._rm_file(self._path(name))  # noqa: SLF001

    async def _upload(self, folder: str, name: str) -> None:
        await self._files._put_file(os.path.join(folder, name), self._path(name))  # noqa: SLF001

    async def _download(
        self, folder: str, objects: Objects, incomplete: Iterator[str], done: Callable, name: str
    ) -> None:
        part = next(incomplete)
        changed = Unavailable(
            f"{self.flag}={self.url}: {printable(name)} has changed while it was being fetched; the same"
            " command fetches it again"
        )
        try:
            await self._files._get_file(self._path(name), part)  # noqa: SLF001
        except FileNotFoundError:
            raise changed from None
        if os.path.getsize(part) != objects[name][0]:
            raise changed
        os.replace(part, os.path.join(folder, name))
        done(name)

    def _all(self, function: Callable, names: list[tuple[str, int]]) -> None:
        """Await function(name) for each (name, bytes), several at once."""
        import asyncio  # here, because local runs are to start as fast as without this module

        left = iter(names)

        async def work():
            for name, size in left:
                await self._repeated(functools.partial(function, name), _SECONDS + size / _SLOWEST)

        async def together():
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(_AT_ONCE, len(names))):
                    tasks.create_task(work())

        sizes = sum(size for _, size in names)
        self._run(together(), _SECONDS * (1 + len(names) / _AT_ONCE) + sizes / _SLOWEST)

    async def _repeated(self, function: Callable, seconds: float | None = None) -> Any:
        """Return `await function()`, repeated if a store that has answered before fails temporarily."""
        import asyncio

        end, wait = time.monotonic() + _SECONDS, 0.5
        while True:
            try:
                result = await asyncio.wait_for(function(), seconds or _SECONDS)
            except Exception as error:  # see `_explained`
                explained = self._explained(error)
                passes = type(explained) is Unavailable and explained is not error
                if not (self._answered and passes) or time.monotonic() + wait > end:
                    raise
            else:
                self._answered = True
                return result
            await asyncio.sleep(wait)
            wait *= 2

    def _run(self, work: Coroutine, seconds: float | None = None, missing: bool = False) -> Any:
        """Return the result of a coroutine, run in the client's thread. Raises a client's error `_explained`.

        With `missing`, FileNotFoundError passes through. A signal that ends this call also ends the work.
        """
        import asyncio

        future = asyncio.run_coroutine_threadsafe(work, self._files.loop)
        try:
            # The limits within `work` are shorter; this one is for a client that blocks its thread.
            return future.result((seconds or _SECONDS) + _SECONDS + 1)
        except Exception as error:  # see `_explained`
            if missing and isinstance(error, FileNotFoundError):
                raise
            raise self._explained(error) from None
        finally:
            future.cancel()

    def _explained(self, error: BaseException) -> BaseException:
        """Return a one-line exception for a client's error; errors of this project and local ones stay.

        FileExistsError answers a conditional write. s3fs, gcsfs, botocore, google.auth and aiohttp have no
        exception in common, so this tests names, codes and texts.
        """
        while isinstance(error, BaseExceptionGroup):  # of tasks
            error = error.exceptions[0]
        number = error.errno if isinstance(error, OSError) else None
        local = isinstance(error, OSError) and error.filename is not None
        if local or number in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, InputError):
            return error
        kind, text = type(error).__name__, printable(" ".join(str(error).split()))[:300]
        code = getattr(error, "code", None) or getattr(error, "status", None)
        about = f"{self.flag}={self.url}"
        if isinstance(error, FileExistsError) or code == 412 or re.search(_THERE, str(error)):
            return FileExistsError(text)
        if isinstance(error, FileNotFoundError) or code == 404:
            return InputError(f"{about}: the bucket does not exist ({text}); give another")
        if isinstance(error, TimeoutError) and not text:
            text = "no answer in time"
        text = text or re.sub("(?<=[a-z])(?=[A-Z])", " ", kind).lower()
        denied = isinstance(error, PermissionError) or code == 403 or re.search(_DENIED, text)
        # Once the store has answered, they are valid, and only could not be renewed.
        no_credentials = not self._answered and (code == 401 or re.search(_CREDENTIALS, f"{kind} {text}"))
        if denied or no_credentials:
            return InputError(f"{about}: access is denied ({text}); check the credentials of this user")
        kinds = {kind.__name__ for kind in type(error).__mro__}
        settings = isinstance(error, ValueError) or code == 400 or number in (errno.EINVAL, _MOVED)
        settings |= "BotoCoreError" in kinds and not kinds & {"HTTPClientError", "ConnectionError"}
        if settings and not self._answered:
            return InputError(f"{about}: cannot be opened ({text}); check the URL and the client's settings")
        what = _NotImplemented if number == errno.ENOSYS or code == 501 else Unavailable
        return what(
            f"{about}: the store does not answer as it should ({text}); the same command resumes once it does"
        )


def _client(module: str) -> tuple[Any, dict[str, Any]]:
    """Return the class of a client, and its arguments. Raises ImportError."""
    # The class that gcsfs exports at its top first asks for a bucket's type by gRPC, for up to a minute.
    client = importlib.import_module(f"{module}.core")
    if module == "s3fs":
        limits = {"connect_timeout": _CONNECTING, "read_timeout": _SILENT, "retries": {"max_attempts": 2}}
        return client.S3FileSystem, {"config_kwargs": limits, "max_concurrency": _PARTS_AT_ONCE}
    limits = importlib.import_module("aiohttp").ClientTimeout(sock_connect=_CONNECTING, sock_read=_SILENT)
    return client.GCSFileSystem, {"requests_timeout": limits}


@contextlib.contextmanager
def local_errors(folder: StrPath) -> Iterator[None]:
    """Raise InputError if the folder of a copy cannot be written within the block."""
    try:
        yield
    except OSError as error:
        where = "give another with XDG_CACHE_HOME"
        raise InputError(f"{folder}: cannot be written ({reason(error)}); {where}") from None


def _in_bytes(size: int) -> str:
    """Return a size in words."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def copy_of(kind: str, url: str) -> str:
    """Return the local folder for the copy of a URL; `kind` is runs or data."""
    cache = user_cache()
    if cache is None:
        raise InputError(f"{url}: there is no folder for its copy; set XDG_CACHE_HOME")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", url).strip("-")[-60:]
    return str(
        cache / "storage" / kind / f"{name}-{hashlib.blake2b(url.encode(), digest_size=6).hexdigest()}"
    )


def read_record(path: str) -> dict[str, Any]:
    """Return what a copy's record has, or {} if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        record = read_json(path, _LARGEST)
        return record if isinstance(record, dict) else {}
    return {}
