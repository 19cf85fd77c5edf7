"""The objects below gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, through gcsfs or s3fs.

Any error of these clients becomes one line, and no call waits for ever. They are imported when a `Store` is
opened.
"""

import contextlib
import errno
import functools
import importlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from alexnet_jax.runtime.errors import InputError, Unavailable, first_line, printable, reason
from alexnet_jax.runtime.files import StrPath

_CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}
_FORM = "expected gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
_SECONDS, _SLOWEST = 60.0, 100_000  # time for a request, and bytes per second of a slow network
_AT_ONCE = 8  # files

Objects = dict[str, tuple[int, str]]  # name below the URL -> size, and the version that the store gives


def is_url(path: StrPath) -> bool:
    """Return whether a path names an object store."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(path)) is not None


class Store:
    """The objects below a URL. All methods take a bounded time, and raise InputError and Unavailable."""

    def __init__(self, flag: str, url: str):
        """Check a URL, which `flag` gave, and open a client for it."""
        found = re.fullmatch(r"(\w+)://([\w.-]+)((?:/[^/?*#\[\]\\\x00-\x1f\x7f]+)+)/*", url)
        if not found or found[1] not in _CLIENTS or {".", ".."} & set(found[3].split("/")):
            raise InputError(f"{flag}={printable(url)}: {_FORM}")
        self.flag, self.url, self._root = flag, url.rstrip("/"), found[2] + found[3]
        module = _CLIENTS[found[1]]
        # A store that does not answer is reported, not waited for.
        limits = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 2}}
        options = {"config_kwargs": limits} if module == "s3fs" else {}
        try:
            client = importlib.import_module(module)
            self._sync = importlib.import_module("fsspec.asyn").sync
        except ImportError as error:
            raise InputError(
                f"{flag}={self.url}: needs {error.name or module}; pip install 'alexnet_jax[storage]'"
            ) from None
        logging.getLogger(module).setLevel(logging.CRITICAL)  # it also raises
        kind = client.S3FileSystem if module == "s3fs" else client.GCSFileSystem
        with self._errors():
            self._files: Any = kind(skip_instance_cache=True, use_listings_cache=False, **options)

    def objects(self) -> Objects:
        """Return all objects."""
        # A large data set has many pages of names.
        found = self._run(self._files._find, self._root, detail=True, seconds=10 * _SECONDS)  # noqa: SLF001
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
        try:
            return self._run(self._files._cat_file, self._path(name), missing=True)  # noqa: SLF001
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str, new: bool = False) -> bool:
        """Write a small object; return False if it is to be `new` but is there."""
        if new and self.read(name) is not None:
            return False
        try:
            mode = "create" if new else "overwrite"
            self._run(self._files._pipe_file, self._path(name), text.encode(), mode=mode)  # noqa: SLF001
        except FileExistsError:
            return False
        except Unavailable as error:
            if not (new and re.search("(?i)not.?implemented", str(error))):
                raise
            return self.write(name, text)  # some servers of S3's protocol cannot do better
        return True

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; one that is gone already is not an error."""
        self._all(self._delete, [(name, 0) for name in names])

    def upload(self, folder: str, names: Iterable[str]) -> None:
        """Upload files of a folder. An object appears, or is replaced, as a whole."""
        sizes = [(name, os.path.getsize(os.path.join(folder, name))) for name in names]
        self._all(functools.partial(self._upload, folder), sizes)

    def download(self, folder: str, objects: Objects, done: Callable[[str], Any] = len) -> None:
        """Download objects into a folder, each completely or not at all; call `done` with each name."""
        sizes = {name: size for name, (size, _) in objects.items()}
        total, free = sum(sizes.values()), 0
        with local_errors(folder):
            os.makedirs(folder, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if total > free:
                raise InputError(
                    f"{self.flag}={self.url}: its copy takes {in_bytes(total)}, but {folder} has"
                    f" {in_bytes(free)} left; make room, or set XDG_CACHE_HOME to a folder on another disk"
                )
            for parent in {os.path.dirname(os.path.join(folder, name)) for name in sizes}:
                os.makedirs(parent, exist_ok=True)
        self._all(functools.partial(self._download, folder, sizes, done), list(sizes.items()))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    async def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self._files._rm_file(self._path(name))  # noqa: SLF001

    async def _upload(self, folder: str, name: str) -> None:
        await self._files._put_file(os.path.join(folder, name), self._path(name))  # noqa: SLF001

    async def _download(self, folder: str, sizes: dict[str, int], done: Callable, name: str) -> None:
        path = os.path.join(folder, name)
        part = f"{path}.{os.getpid()}.part"
        try:
            await self._files._get_file(self._path(name), part)  # noqa: SLF001
            if os.path.getsize(part) != sizes[name]:
                raise OSError(f"{name} was cut short")
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(part)
        done(name)

    def _all(self, function: Callable, names: list[tuple[str, int]]) -> None:
        """Await function(name) for each (name, bytes), several at once."""
        import asyncio  # here, because local runs are to start as fast as without this module

        async def together():
            gate = asyncio.Semaphore(_AT_ONCE)

            async def one(name: str, size: int):
                async with gate:
                    await asyncio.wait_for(function(name), _SECONDS + size / _SLOWEST)

            tasks = [asyncio.ensure_future(one(*name)) for name in names]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

        if names:
            sizes = sum(size for _, size in names)
            self._run(together, seconds=_SECONDS * (1 + len(names) / _AT_ONCE) + sizes / _SLOWEST)

    def _run(self, function: Callable, *args, seconds: float | None = None, missing: bool = False, **named):
        with self._errors(missing):
            return self._sync(self._files.loop, function, *args, timeout=seconds or _SECONDS, **named)

    @contextlib.contextmanager
    def _errors(self, missing: bool = False) -> Iterator[None]:
        """Raise one line for any error of a client; with `missing`, FileNotFoundError passes through."""
        try:
            yield
        except (InputError, FileExistsError):
            raise
        except Exception as error:  # s3fs, gcsfs, botocore, google.auth and aiohttp have no common one
            kind, text = type(error).__name__, first_line(error)[:200]
            about = f"{self.flag}={self.url}"
            if isinstance(error, FileNotFoundError):
                if missing:
                    raise
                raise InputError(f"{about}: the bucket does not exist ({text}); give another") from None
            if _is_lock(error):
                raise FileExistsError(text) from None
            credentials = re.search(
                "(?i)credential|anonymous|accesskey|signature|forbidden", f"{kind} {text}"
            )
            code = getattr(error, "code", None) or getattr(error, "status", None)
            if credentials or isinstance(error, PermissionError) or code in (401, 403):
                raise InputError(
                    f"{about}: access is denied ({text or kind}); check the credentials of this user"
                ) from None
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            if isinstance(error, TimeoutError):
                text = "no answer in time"
            why = text if text != kind else re.sub("(?<=[a-z])(?=[A-Z])", " ", kind).lower()
            raise Unavailable(
                f"{about}: the store does not answer as it should ({why}); the same command resumes once it"
                " does"
            ) from None


def _is_lock(error: Exception) -> bool:
    """Return whether an object that was to be new is there."""
    return "PreconditionFailed" in str(error) or getattr(error, "code", None) in (412, "PreconditionFailed")


@contextlib.contextmanager
def local_errors(folder: StrPath) -> Iterator[None]:
    """Raise InputError if the folder of a copy cannot be written within the block."""
    try:
        yield
    except OSError as error:
        where = "give another with XDG_CACHE_HOME"
        raise InputError(f"{folder}: cannot be written ({reason(error)}); {where}") from None


def in_bytes(size: int) -> str:
    """Return a size in words."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
