"""A split of any data set as one kind of object."""

from alexnet_jax.datasets.folder import FolderSource
from alexnet_jax.datasets.prepared import TfdsSource, prepared_builder
from alexnet_jax.datasets.raw import RawSource


def open_source(config, split_field: str):
    """Open a split of the data set of `config.data`; `split_field` is train_split, val_split or test_split.

    A source has `len`, `read(indices)` -> (uint8 [n, image_size, image_size, channels], int32 [n]),
    `label_names`, `folder`, where its statistics are kept, and `split`. It is prepared first where it is not
    yet. Raises InputError if it cannot be, or cannot be read.
    """
    data, field = config.data, f"data.{split_field}"
    what = data[split_field], data.image_size, data.channels, field
    if data.name == "folder":
        return FolderSource(data.dir, *what)
    source = TfdsSource(prepared_builder(config), *what)
    return RawSource(source) if data.store == "raw" else source
