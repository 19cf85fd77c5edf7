"""The environment of the programs that experiments start."""

import contextlib
import os
import sys
from collections.abc import Iterator


def huge_pages() -> dict[str, str]:
    """Return what makes glibc's malloc use pages of 2 MiB, or {} if the user has set that tunable.

    XLA gives the memory of a step back after every step, and the system hands it out again, zeroed: in pages
    of 4 KiB that is 400,000 page faults per step of the paper's network, and 8 % of its time on two CPU
    cores. Malloc reads the environment only when a program starts, so whoever starts it has to set this.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc.hugetlb" in tunables:
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))}


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Add `variables` to the environment of what is started within the block."""
    before = os.environ.copy()
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ.update(before)
