"""The runs that a figure or a report shows."""

import os
import pathlib
import sys

from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs.metrics import read_rows


def find_workdirs(folder: str) -> list[str]:
    """Return the folder itself if it is a workdir, else those within it. Raises InputError if none is."""
    found = [folder] if os.path.exists(os.path.join(folder, "config.json")) else []
    found = found or [str(path.parent) for path in sorted(pathlib.Path(folder).glob("*/**/config.json"))]
    if not found:
        raise InputError(f"{folder}: has no config.json; give the workdir of a run, or of a sweep")
    return found


def find_validated(folder: str) -> list[str]:
    """Return the workdirs of a folder; of several, those with validations, and name the others on stderr."""
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
        raise InputError(f"--workdir={folder}: none of its runs has a validation; let one come to its first")
    return kept


def short_names(workdirs: list[str]) -> list[str]:
    """Return what tells the workdirs apart: their paths below the folder that they have in common."""
    paths = [os.path.abspath(workdir) for workdir in workdirs]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]
