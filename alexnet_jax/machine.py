"""What the program asks of the machine before it computes, for speed only.

ask_huge_pages    memory in pages of 2 MiB
keep_programs     what XLA has compiled, for the next start
"""

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
    if huge_pages():
        os.environ.update(huge_pages())
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_programs() -> None:
    """A second start of a command compiles nothing: jax's cache, in the user's folder for such.

    JAX_COMPILATION_CACHE_DIR names another, and JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    import jax  # here, so that a mistake in the flags is told at once

    if jax.config.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(cache, "alexnet_jax", f"{_cpu():08x}")
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _cpu() -> int:
    """Another for CPUs of other instructions, which jax's cache takes for the same; a home may be shared."""
    try:
        with open("/proc/cpuinfo") as file:
            return zlib.crc32(
                "".join(sorted({x for x in file if x.startswith(("flags", "Features"))})).encode()
            )
    except OSError:
        return 0
