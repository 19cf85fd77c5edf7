"""The files of a run's folder that are neither checkpoints nor rows of metrics."""

import json
import os

import ml_collections

from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.files import write_text


def _tuples(value):
    """JSON has lists where a configuration has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def read_config(workdir: str) -> ml_collections.ConfigDict | None:
    """The configuration of a workdir, or None where it has none. Raises InputError if it cannot be read."""
    path = os.path.join(workdir, "config.json")
    try:
        with open(path) as file:
            return ml_collections.ConfigDict(_tuples(json.load(file)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: is not a configuration ({error}); give another --workdir") from None


def write_config(config, workdir: str) -> None:
    """Writes config.json, whole or not at all; one that is the same already is left alone."""
    stored = read_config(workdir)
    if stored is None or stored.to_dict() != config.to_dict():
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        write_text(os.path.join(workdir, "config.json"), text)
