"""TensorBoard's event files: scalars and hyperparameters.

The file is closed after each event, so that a killed run loses no event, a full disk is reported at once,
and the end of a run waits for nothing. The messages and records are TensorBoard's. Its own file writer is
not used, because its thread ends silently on a full disk.
"""

import os
import socket
import time
from collections.abc import Mapping

from alexnet_jax.runtime.files import StrPath


class EventFile:
    """A new event file. All methods raise OSError with the file's name."""

    def __init__(self, folder: StrPath):
        """Start the file; a folder has one for each start of a run."""
        self._path = os.path.join(folder, f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}")
        self._append(file_version="brain.Event:2")

    def write_hparams(self, fields: Mapping) -> None:
        """Write the hyperparameters without those that are None; other types are written as text."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in fields.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                start.hparams[name].number_value = value
            elif value is not None:
                start.hparams[name].string_value = str(value)
        content = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        value = Summary.Value(
            tag=metadata.SESSION_START_INFO_TAG,
            metadata=metadata.create_summary_metadata(content),
            tensor=metadata.NULL_TENSOR,
        )
        self._append(summary=Summary(value=[value]))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write values at a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._append(step=step, summary=Summary(value=values))

    def _append(self, **event) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        message = Event(wall_time=time.time(), **event).SerializeToString()
        try:
            with open(self._path, "ab") as file:
                RecordWriter(file).write(message)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from None
