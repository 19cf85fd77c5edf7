"""TensorBoard's event files: scalars and hyperparameters.

Each event is appended and the file closed again: a killed run loses none, a full disk is told at the event
that found it, and there is nothing to wait for at the end. tensorboardX makes the messages; its own writers
have a thread that ends without a word on a full disk.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping

from alexnet_jax.runtime.files import StrPath


class EventFile:
    """A new event file. All methods raise OSError, which names it."""

    def __init__(self, folder: StrPath):
        """Start the file; a folder may have several, one for each start of a run."""
        self._path = os.path.join(folder, f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}")
        self._append(file_version="brain.Event:2")

    def write_hparams(self, fields: Mapping) -> None:
        """Write the hyperparameters; None is left out, and what is no string and no number is its text."""
        from tensorboardX import summary

        simple = {
            name: value if isinstance(value, str | bool | int | float) else str(value)
            for name, value in fields.items()
            if value is not None
        }
        _, start, _ = summary.hparams(simple, {})
        self._append(summary=start)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write values at a step."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._append(step=step, summary=Summary(value=values))

    def _append(self, **event) -> None:
        """Add an event as a record: the length and its checksum, the message and its checksum."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        message = Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(message))
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, message))
        try:
            with open(self._path, "ab") as file:
                file.write(length + next(checksums) + message + next(checksums))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from None
