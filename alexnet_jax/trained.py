"""A trained network, for use from Python: net = alexnet_jax.load("runs/paper")

    net.predict(images)                            probabilities, as in evaluation
    net.activations(images, ["conv5/pool"])        activations of layers by name, for the central view
    net.apply(net.params, net.views(images))       logits and all activations, to jit and to differentiate

Names are those of `net.layers`: `conv1` is the layer's linear output, `conv1/activation` and `conv1/pool`
follow it, as `--mode=describe` shows, and `fc8` is the logits.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from alexnet_jax import augment, evaluate, network, table
from alexnet_jax import config as configuration
from alexnet_jax.datasets import fingerprints
from alexnet_jax.datasets import images as pictures
from alexnet_jax.datasets.labels import imagenet_classes
from alexnet_jax.runtime.errors import InputError, nearest, printable
from alexnet_jax.runtime.files import StrPath
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import make_activations, make_view_outputs, mean_output, with_precision
from alexnet_jax.workdirs import identity, remote
from alexnet_jax.workdirs.workdir import read_statistics

BATCH = 32  # images per batch

# uint8 [n, height, width, 1 or 3], or a sequence of pictures: paths, or uint8 [height, width(, 1 or 3)]
Images = np.ndarray | jax.Array | StrPath | Sequence[Any]


def load(workdir: StrPath, overrides: dict[str, Any] | None = None) -> "Trained":
    """Load the best checkpoint of a workdir, trained or imported, onto the first device.

    `overrides` are fields of its configuration, such as {"eval.step": 5157} for another checkpoint,
    {"eval.views": 1}, or {"mesh.column": 2} for one device per column. Raises InputError, with the remedy, if
    there is no run or a field does not fit.
    """
    with remote.copied(workdir) as folder:
        return Trained(configuration.of_run(folder, {"mesh.column": 1, **(overrides or {})}), folder)


class Trained:
    """The checkpoint eval.step of a workdir, on one position of the mesh's axis `data`.

    config        the configuration of the run
    step          the number of updates made
    run           the run's fingerprint in identity.json, None in a workdir of an earlier version
    params        {layer: {"kernel": [columns, …], "bias": …}}, as in the checkpoint
    statistics    the mean image and the other statistics of the training split
    label_names   the data set's names of the classes; empty if it has none
    names         a name for each class, with the words for ImageNet's
    layers        the names that `activations` takes: {name: shape for one image}, in order
    """

    def __init__(self, config, workdir: StrPath):
        """Open the checkpoint of the run of `config`. Raises InputError if it cannot be opened."""
        config.mesh.data = 1  # any number of images
        self.config, self.mesh = config, make_mesh(config)
        stored = read_statistics(workdir, config)
        self.run = identity.of_workdir(workdir)
        self.step, self.params = evaluate.stored_params(config, workdir, self.mesh)
        self.statistics = evaluate.on_devices(stored, self.mesh)
        self.label_names = [str(name) for name in stored.get("label_names", ())]
        unnamed = range(len(self.label_names), config.model.num_classes)
        words = {line.split(" ", 1)[0]: line for line in imagenet_classes()}
        # Folders may be named by the WordNet id alone.
        named = [printable(words.get(name, name)) for name in self.label_names]
        self.names = [*named, *(f"class {label}" for label in unnamed)]
        self.layers = dict(table.activation_shapes(config))
        self._outputs = make_view_outputs(config, self.mesh, config.eval.views)
        self._activations: dict[tuple[str, ...], Any] = {}

    def predict(self, images: Images) -> np.ndarray:
        """Return the probabilities, float32 [n, classes], the mean over `config.eval.views` views.

        A picture of another size or colour is prepared as in the paper. Raises InputError for a file or array
        that is not a picture.
        """
        return self._in_batches(
            images, lambda batch: jnp.exp(mean_output(self._outputs(self.params, batch, self.statistics)))
        )

    def activations(
        self, images: Images, names: Sequence[str], column: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return activations for the central view by name: float [n, height, width, maps] or [n, units].

        Both columns' maps are joined, column 0's first. `column` selects the maps of one column, except for
        fc8, the sum of both. Dropout scales, as in evaluation. Raises InputError for an unknown name.
        """
        wanted = tuple(self.check_layers(names, column))
        found = self._in_batches(images, functools.partial(self._of_layers, wanted))
        return {name: self._column(name, x, column) for name, x in found.items()}

    def check_layers(self, names: Sequence[str], column: int | None = None) -> dict[str, tuple[int, ...]]:
        """Return the shape of one image's activations by name, of one column or of both joined.

        Raises InputError for a name or a column that the network lacks.
        """
        columns = self.config.model.columns
        if column is not None and not 0 <= column < columns:
            raise InputError(f"column: {column}, but there are {columns}, from 0")
        wanted = (names,) if isinstance(names, str) else tuple(names)
        for name in wanted:
            if name not in self.layers:
                known = f"there are {', '.join(self.layers)}"
                raise InputError(
                    f"layers: {name!r} is not in this network{nearest(name, self.layers)}; {known}"
                )
        shapes = {name: self.layers[name] for name in wanted}
        if column is None:
            return shapes
        return {
            name: shape if name == network.CLASSIFIER else (*shape[:-1], shape[-1] // columns)
            for name, shape in shapes.items()
        }

    def views(self, images: Images) -> jax.Array:
        """Return the input of `apply`: the central views, normalised, float32 [n, crop, crop, channels]."""
        return self._view(self.prepared(images), self.statistics)

    def apply(self, params, views) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the logits [n, classes] and all activations by name, in the shapes of `activations`.

        A pure function of arrays, for your own jit, grad and vmap; `params` are like `self.params`.
        """
        columns = network.Network(ml_collections.FrozenConfigDict(self.config), self.config.model.columns)
        logits, own = with_precision(self.config, columns.apply)({"params": params}, views)
        joined = {name: jnp.concatenate(maps, axis=-1) for name, maps in own.items()}
        return logits, {**joined, network.CLASSIFIER: logits}

    def prepared(self, images: Images) -> np.ndarray:
        """Return pictures prepared for the network: uint8 [n, image_size, image_size, channels].

        The shorter side is scaled to image_size, and the centre is kept (section 2). Raises InputError.
        """
        size, channels = self.config.data.image_size, self.config.data.channels
        items = _listed(images)
        if hasattr(items, "shape"):
            items = np.asarray(items)
            if items.ndim != 4:
                shape = f"[n, {size}, {size}, {channels}]"
                raise InputError(f"images: expected uint8 {shape} or a list of pictures, got {items.shape}")
            if items.dtype == np.uint8 and items.shape[1:] == (size, size, channels):
                return items
        return np.stack([prepared_picture(item, size, channels) for item in items])

    def _in_batches(self, images: Images, function):
        """Return the concatenated results of `function`, arrays or trees of them, over batches of images."""
        items = _listed(images)
        if not len(items):
            raise InputError("images: the list is empty; give at least one")
        parts = [
            jax.tree.map(np.asarray, function(self.prepared(items[start : start + BATCH])))
            for start in range(0, len(items), BATCH)
        ]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def _of_layers(self, names: tuple[str, ...], batch: np.ndarray) -> dict[str, jax.Array]:
        if names not in self._activations:
            self._activations[names] = make_activations(self.config, self.mesh, names)
        return self._activations[names](self.params, self._view(batch, self.statistics))[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the parameters and of the statistics that normalise images."""
        named = jax.tree_util.tree_leaves_with_path(jax.device_get({"p": self.params, "s": self.statistics}))
        return fingerprints.combined(
            *(
                part
                for path, array in named
                for part in (f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}", array.tobytes())
            )
        )

    @functools.cached_property
    def _view(self):
        centre = jnp.array(augment.test_views(self.config, 1)[0], jnp.int32)
        return jax.jit(lambda images, statistics: augment.test_view(images, centre, statistics, self.config))

    def _column(self, name: str, activations: np.ndarray, column: int | None) -> np.ndarray:
        if column is None or name == network.CLASSIFIER:
            return activations
        return np.split(activations, self.config.model.columns, axis=-1)[column]


def _listed(images: Images):
    """Return images as a sequence; a single path is one picture."""
    return [images] if isinstance(images, str | os.PathLike) else images


def prepared_picture(item, size: int, channels: int) -> np.ndarray:
    """Return one picture, a path or an array, as `Trained.prepared` does."""
    if isinstance(item, str | os.PathLike):
        return pictures.read_all([item], size, channels)[0]
    array = np.asarray(item)
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        raise InputError(
            f"images: expected paths, or uint8 arrays [height, width, 1 or 3], got {array.dtype}"
            f" {list(array.shape)}"
        )
    try:
        return pictures.fit(array, size, channels)
    except ValueError as error:
        raise InputError(f"images: {error}") from None
