"""JAX's compilation cache, with which a second start of a command compiles nothing.

Without another package JAX does not limit the size of its folder, and it never replaces an unreadable entry.
This module does both, but only for the default folder: another one belongs to the user.
"""

import contextlib
import logging
import os
import pathlib
import re
import warnings
import zlib
from typing import Any

log = logging.getLogger("alexnet_jax")

MOST_BYTES = 2 << 30  # in the default folder, of all CPUs together
_WARNING = re.compile(
    "Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)", re.DOTALL
)


def enable_compilation_cache() -> None:
    """Cache compiled programs in the user's cache folder.

    The folder is limited to MOST_BYTES, and unreadable entries are compiled again and replaced.
    JAX_COMPILATION_CACHE_DIR names another folder. Several processes cache nothing without it, and only the
    first writes. JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    import jax  # here, so that a mistake in the flags is reported at once

    from alexnet_jax.runtime import processes
    from alexnet_jax.runtime.files import user_cache

    config: Any = jax.config  # its options are not attributes of its class
    if config.jax_compilation_cache_dir is None and processes.count() == 1:
        cache = user_cache()
        if cache is not None:
            folder = cache / _cpu()
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                config.update("jax_compilation_cache_dir", str(folder))
                remove_oldest(cache, MOST_BYTES)
                _replace_unreadable(folder)
    config.update("jax_persistent_cache_min_compile_time_secs", 0)


def remove_oldest(cache: pathlib.Path, most: int) -> None:
    """Remove the entries that were used or written longest ago, until `most` bytes are left."""
    entries = []
    for path in cache.glob("*/*-cache"):
        with contextlib.suppress(OSError):  # another program may remove them too
            found = path.stat()
            entries.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def _replace_unreadable(folder: pathlib.Path) -> None:
    """Remove entries of `folder` when JAX warns that one is damaged or incomplete.

    JAX would keep it for ever, because it never overwrites an entry. Its warning comes before it compiles and
    writes again, and names the program, not the entry, so all entries of that program are removed.
    """
    show, told = warnings.showwarning, set()

    def showwarning(message, category, filename, lineno, file=None, line=None):
        found = _WARNING.match(str(message))
        if not found:
            show(message, category, filename, lineno, file, line)
            return
        what, program, reason = found.groups()
        for path in folder.glob("*-cache"):
            if path.name.startswith(f"{program}-"):
                with contextlib.suppress(OSError):
                    path.unlink()
        if what not in told:
            then = "is compiled again" if what == "reading" else "is not kept"
            log.warning(f"warning: {folder}: {program} {then} ({(reason.splitlines() or [''])[0][:120]})")
            told.add(what)

    if getattr(show, "folder", None) != folder:  # a second mesh
        showwarning.folder = folder  # type: ignore[attr-defined]
        warnings.showwarning = showwarning


def _cpu() -> str:
    """Return a name for this CPU and its cores, which JAX's cache ignores although homes may be shared."""
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        flags = "".join(sorted({line for line in file if line.startswith(("flags", "Features"))}))
    return f"{zlib.crc32(flags.encode()):08x}-{len(os.sched_getaffinity(0)) if flags else os.cpu_count()}"
