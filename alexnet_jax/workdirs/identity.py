"""The identity of a run: its data, its classes and the origin of its weights.

identity.json of a workdir has the splits that a run learns from, each with its class names in order, its
number of examples and a fingerprint of their content. It also has the origin of the first parameters, and a
fingerprint of statistics.npz. It is compared before a run resumes. A data set may move, because its
fingerprint does not depend on its location.

    of_split      return the identity of a split
    check         raise InputError if a workdir belongs to other data
    of_workdir    return the fingerprint of a run, for eval.json and for runs that start from it
"""

import json
import logging
import os
from typing import Any

from alexnet_jax.datasets import fingerprints
from alexnet_jax.datasets.source import Source
from alexnet_jax.runtime.errors import InputError, first_line, some
from alexnet_jax.runtime.files import StrPath, read_json, write_text

log = logging.getLogger("alexnet_jax")

_LARGEST = 16 << 20  # bytes; the names of 22,000 classes, twice, are 2 MB
SPLITS = ("train", "val")
# Origins of the first parameters, besides another run and a file.
DRAWN = {"kind": "drawn"}  # from the seed
UNKNOWN = {"kind": "unknown"}  # in a workdir of an earlier version
Identity = dict[str, Any]  # `run`, `train` and `val` (None for imported weights), and `origin`


def of_split(source: Source) -> dict[str, Any]:
    """Return the identity of a split: `classes` (names in order), `examples` and `fingerprint`."""
    names = [str(name) for name in source.label_names]
    return {"classes": names, "examples": len(source), "fingerprint": source.fingerprint()}


def of_run(fields: dict[str, Any], train: Source | None, val: Source | None, origin: dict) -> Identity:
    """Return the identity of a run, for identity.json.

    `fields` are the configuration's fields that decide the parameters; `val` decides when the learning rate
    drops. Imported weights have neither split. `run` is a fingerprint of all of it: two runs share it only if
    they compute the same.
    """
    identity = {
        "train": train and of_split(train),
        "val": val and of_split(val),
        "origin": {key: value for key, value in origin.items() if key != "workdir"},  # it may move
    }
    return {
        "run": fingerprints.combined(json.dumps([fields, identity], sort_keys=True)),
        **identity,
        "origin": origin,
    }


def of_result(source: Source) -> dict[str, str]:
    """Return the fingerprints in eval.json of the data that an evaluation read."""
    return {"fingerprint": source.fingerprint(), "classes": fingerprints.of_names(source.label_names)}


def of_workdir(workdir: StrPath) -> str | None:
    """Return the fingerprint of a workdir's run, or None in a workdir of an earlier version."""
    identity = read(workdir)
    return identity["run"] if identity else None


def read(workdir: StrPath) -> Identity | None:
    """Read identity.json, or return None if there is none. Raises InputError if it is damaged."""
    path = os.path.join(workdir, "identity.json")
    try:
        stored = read_json(path, _LARGEST)
        for split in SPLITS:
            if stored[split] is not None:
                difference(stored[split], stored[split])
        stored["run"], stored["origin"]["kind"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{path}: cannot be read ({reason}); delete it, and the next start writes it again"
        ) from None
    return stored


def write(workdir: StrPath, identity: Identity) -> None:
    """Write identity.json, completely or not at all."""
    write_text(os.path.join(workdir, "identity.json"), json.dumps(identity, indent=1) + "\n")


def check(workdir: StrPath, stored: Identity | None, identity: Identity) -> None:
    """Raise InputError if a workdir's run, `stored`, learned from data other than that of `identity`."""
    for split in SPLITS if stored else ():
        there, here = (stored or {})[split], identity[split]
        if there is not None and (what := difference(there, here)):
            raise InputError(
                f"data.{split}_split: is not the data that {workdir} was trained on: {what}; give the former"
                " data, or another --workdir"
            )


def complete(workdir: StrPath, identity: Identity) -> None:
    """Complete identity.json: all of it in a workdir of an earlier version, the data after an import."""
    stored = read(workdir)
    if stored is None:
        sizes = " and ".join(f"{identity[split]['examples']:,}" for split in SPLITS)
        log.info(
            f"{workdir}/identity.json: missing, as in an earlier version; it now names the data found here,"
            f" {sizes} examples"
        )
    lacks_data = stored is None or stored["train"] is None
    if lacks_data or "statistics" not in (stored or {}):
        kept = {
            name: value for name, value in (stored or {}).items() if name == "statistics" or not lacks_data
        }
        write(workdir, identity | kept)


def difference(there: dict, here: dict) -> str:
    """Return the difference of two identities of a split in a few words, or "" if there is none."""
    if there["classes"] != here["classes"]:
        lacking = [name for name in there["classes"] if name not in here["classes"]]
        added = [name for name in here["classes"] if name not in there["classes"]]
        parts = [f"lack {some(lacking)}"] * bool(lacking) + [f"also have {some(added)}"] * bool(added)
        what = " and ".join(parts) or "are in another order"
        return f"{len(there['classes'])} classes there, {len(here['classes'])} here, which {what}"
    if there["examples"] != here["examples"]:
        return f"{there['examples']:,} examples there, {here['examples']:,} here"
    if there["fingerprint"] != here["fingerprint"]:
        return f"the content differs (fingerprint {there['fingerprint']} there, {here['fingerprint']} here)"
    return ""
