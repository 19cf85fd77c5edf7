"""JAX's compilation cache: a second start of a command compiles nothing."""

import contextlib
import os
import zlib
from typing import Any


def enable_compilation_cache() -> None:
    """Keep what XLA compiles in the user's folder for such.

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
    config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _cpu() -> str:
    """Return a name for this CPU and its cores: homes are shared, and JAX's cache ignores the difference."""
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        flags = "".join(sorted({line for line in file if line.startswith(("flags", "Features"))}))
    return f"{zlib.crc32(flags.encode()):08x}-{len(os.sched_getaffinity(0)) if flags else os.cpu_count()}"
