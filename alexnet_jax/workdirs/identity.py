"""Identity: by what a run and a result know their data, their classes and the origin of their weights.

    of_split      the identity of a split: names of the classes in order, number of examples, fingerprint
    difference    one line about two that are not of the same data
    Identity      that of a run, in identity.json: its splits and where its first parameters came from
    digest        of a run: equal runs have equal parameters, up to rounding; eval.json has it as `run`

All of it is compared before anything is resumed or taken for finished. A data set may move: its fingerprint is
of the content of its files.
"""

import dataclasses
import hashlib
import json
import logging
import os
from typing import Any

from alexnet_jax.datasets.source import Source
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text

log = logging.getLogger("alexnet_jax")

FILE = "identity.json"


def of_split(source: Source) -> dict[str, Any]:
    """Return the identity of a split: `classes`, their names in order, `examples` and `fingerprint`."""
    names = [str(name) for name in source.label_names]
    return {"classes": names, "examples": len(source), "fingerprint": source.fingerprint}


def difference(there: dict, here: dict) -> str:
    """Return how two identities of a split differ, in a few words, or "" if they are equal."""
    if there["classes"] != here["classes"]:
        lacking = [name for name in there["classes"] if name not in here["classes"]]
        added = [name for name in here["classes"] if name not in there["classes"]]
        parts = [f"lacks {_some(lacking)}"] * bool(lacking) + [f"has {_some(added)} besides"] * bool(added)
        what = " and ".join(parts) or "has them in another order"
        return f"{len(there['classes'])} classes there, {len(here['classes'])} here, which {what}"
    if there["examples"] != here["examples"]:
        return f"{there['examples']:,} examples there, {here['examples']:,} here"
    if there["fingerprint"] != here["fingerprint"]:
        return (
            f"{here['examples']:,} examples in both, of another content (fingerprint {there['fingerprint']}"
            f" there, {here['fingerprint']} here)"
        )
    return ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


@dataclasses.dataclass(frozen=True)
class Identity:
    """The data that a run learns from, and where its first parameters came from."""

    train: dict[str, Any] | None  # None of weights that were imported, and not trained here
    val: dict[str, Any] | None  # it decides when the learning rate drops
    origin: dict[str, Any]  # {"drawn": seed}, {"from": digest, …} or {"imported": fingerprint, …}

    def digest(self, config) -> str:
        """Return a short text that two runs share only if they compute the same."""
        from alexnet_jax.config import run_fields

        parts = run_fields(config), self.train, self.val, self.origin
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
