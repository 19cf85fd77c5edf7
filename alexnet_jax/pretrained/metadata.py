"""The run of an exported file, as a text in its metadata.

The text is JSON: `config` is the content of config.json, `run` the run's fingerprint in identity.json, `step`
the checkpoint's step, and `statistics` the run's statistics.npz in base64. Readers skip other fields.
"""

import base64
import io
import json
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.datasets import statistics
from alexnet_jax.workdirs.workdir import config_of


class Run(NamedTuple):
    """The content of a workdir besides the weights."""

    config: Any  # a ConfigDict, unchecked if it is from a file
    run: str | None  # from identity.json; None in a workdir of an earlier version
    step: int
    statistics: dict[str, np.ndarray]


def write(run: Run) -> str:
    """Return a run as a text, the same for equal runs."""
    file = io.BytesIO()
    names = [name for name in (*statistics.ARRAYS, "label_names") if name in run.statistics]
    arrays: Any = {name: run.statistics[name] for name in names}
    np.savez(file, **arrays)  # not compressed: zlib's versions differ
    encoded = base64.b64encode(file.getvalue()).decode()
    fields = {"config": run.config.to_dict(), "run": run.run, "step": run.step, "statistics": encoded}
    return json.dumps(fields)


def read(text: str) -> Run:
    """Return the run in a text. Raises ValueError, TypeError or KeyError if there is none."""
    fields = json.loads(text)
    stored = statistics.load(io.BytesIO(base64.b64decode(fields["statistics"], validate=True)))
    if stored is None:
        raise ValueError("its statistics cannot be read")
    if not isinstance(fields["config"], dict) or type(fields["step"]) is not int:
        raise ValueError("its config or step is of another type")
    return Run(config_of(fields["config"]), fields.get("run"), fields["step"], stored)
