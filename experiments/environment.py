"""The environment of programs that the commands here start."""

import os
import sys


def huge_pages() -> dict[str, str]:
    """Return the variables that ask glibc's malloc for pages of 2 MiB; none if the user has decided.

    XLA frees the memory of a step after every step, and the system hands it out again, zeroed. In pages of
    4 KiB this costs 8 % of a step of the paper's network on two CPU cores. malloc reads the variable only
    when a program starts.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc.hugetlb" in tunables:
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))}
