"""What the program asks of the machine before it computes, for speed only.

ask_huge_pages    memory in pages of 2 MiB
keep_programs     what XLA has compiled, for the next start
"""

import contextlib
import os
import sys
import zlib


def huge_pages() -> dict[str, str]:
    """What the environment of a program is to have for this; nothing where the user has decided."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc.hugetlb" in tunables:
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))}


def ask_huge_pages() -> None:
    """Starts the program once more, on Linux, with huge pages asked of glibc's malloc.

    XLA gives the memory of a step back after every step, and the system hands it out again, zeroed: in pages
    of 4 KiB that is 400,000 page faults a step of the paper's network, and 8 % of its time on two CPU cores.
    Malloc reads the environment only at the start. GLIBC_TUNABLES=glibc.malloc.hugetlb=0 leaves it as it is.
    """
    alone = "alexnet_jax.main" in sys.orig_argv and sys.gettrace() is None  # not in a notebook or debugger
    if alone and huge_pages():
        os.environ.update(huge_pages())
        with contextlib.suppress(OSError):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_programs() -> None:
    """A second start of a command compiles nothing: jax's cache, in the user's folder for such.

    JAX_COMPILATION_CACHE_DIR names another, also for several processes, which keep nothing without it (only
    the first writes); JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    import jax  # here, so that a mistake in the flags is told at once

    from alexnet_jax.runtime import processes

    if jax.config.jax_compilation_cache_dir is None and processes.count() == 1:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(cache, "alexnet_jax", _cpu())
        with contextlib.suppress(OSError):
            if os.path.isabs(folder):  # "~" stays where there is no home
                os.makedirs(folder, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _cpu() -> str:
    """Another for other CPUs, or more of them, which jax's cache takes for the same; a home may be shared."""
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        flags = "".join(sorted({line for line in file if line.startswith(("flags", "Features"))}))
    return f"{zlib.crc32(flags.encode()):08x}-{len(os.sched_getaffinity(0)) if flags else os.cpu_count()}"
