"""Find the runs that a figure or a report shows."""

import os
import pathlib
import sys

from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs.metrics import read_rows


def find_workdirs(folder: str) -> list[str]:
    """Return the folder if it is a workdir, otherwise the workdirs in it. Raises InputError if none is."""
    found = [folder] if os.path.exists(os.path.join(folder, "config.json")) else []
    found = found or [str(path.parent) for path in sorted(pathlib.Path(folder).glob("*/**/config.json"))]
    if not found:
        raise InputError(f"{folder}: has no config.json; give the workdir of a run, or of a sweep")
    return found


def find_validated(folder: str) -> list[str]:
    """Return the workdirs of a folder. Of several, leave out and report those without validations."""
    found = find_workdirs(folder)
    if found == [folder]:
        return found
    kept = []
    for workdir in found:
        try:
            read_rows(workdir)
            kept.append(workdir)
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not kept:
        raise InputError(f"--workdir={folder}: none of its runs has a validation; let one reach its first")
    return kept


def short_names(workdirs: list[str]) -> list[str]:
    """Return distinct names of the workdirs: their paths below their common folder."""
    paths = [os.path.abspath(workdir) for workdir in workdirs]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]
