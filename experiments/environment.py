"""The environment of the programs that experiments start."""

import contextlib
import os
import sys
from collections.abc import Iterator


def huge_pages() -> dict[str, str]:
    """Return variables that make glibc's malloc use pages of 2 MiB, or {} if the user has set that tunable.

    XLA returns the memory of a step after every step, and the system hands it out again, zeroed. In pages of
    4 KiB that is 400,000 page faults per step of the paper's network, and 8 % of its time on two CPU cores.
    Malloc reads the environment only when a program starts, so the variables must be set before.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc.hugetlb" in tunables:
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))}


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Add `variables` to the environment of programs that the block starts."""
    before = os.environ.copy()
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ.update(before)
