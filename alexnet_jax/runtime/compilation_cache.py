"""JAX's compilation cache: a second start of a command compiles nothing.

JAX neither bounds its folder without another package, nor replaces an entry that it cannot read. Both are
done here, for our default folder only: another belongs to the user.
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
    """Keep what XLA compiles in the user's folder for such.

    It is held to MOST_BYTES, and what cannot be read there is compiled again and replaced.
    JAX_COMPILATION_CACHE_DIR names another folder, also for several processes, which keep nothing without it
    (only the first writes); JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    import jax  # here, so that a mistake in the flags is reported at once

    from alexnet_jax.runtime import processes
    from alexnet_jax.runtime.files import user_cache

    config: Any = jax.config  # its options are no attributes of its class
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
    """Remove entries of `folder` when JAX warns that one is damaged or was not written whole.

    JAX would keep it for ever: it writes no entry that is there. Its warning comes before it compiles and
    writes again, and names the program, not the entry, so all entries of that program go.
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
    """Return a name for this CPU and its cores: homes are shared, and JAX's cache ignores the difference."""
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        flags = "".join(sorted({line for line in file if line.startswith(("flags", "Features"))}))
    return f"{zlib.crc32(flags.encode()):08x}-{len(os.sched_getaffinity(0)) if flags else os.cpu_count()}"
