"""FIDELITY.md names what exists, and configs/paper.py has the paper's numbers."""

import ast
import math
import pathlib
import re

from alexnet_jax.config import flatten
from alexnet_jax.table import layer_table
from configs import paper

ROOT = pathlib.Path(__file__).parent.parent


def defined(path):
    """The names of the functions and classes of a module."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_everything_that_fidelity_names_exists():
    text = (ROOT / "FIDELITY.md").read_text()
    named = re.findall(r"`((?:tests|alexnet_jax|configs)/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) == len(re.findall(r"`[^`]*\.py", text)) > 50
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert not name or name in defined(path), f"{path}::{name}"
    for name in ("paper", "code2012", "caffe", "single_tower", "torchvision", "finetune"):
        assert f"`{name}`" in text or f"`configs/{name}.py`" in text
        assert (ROOT / "configs" / f"{name}.py").is_file()


def test_numbers_of_the_paper():
    fields = dict(flatten(paper.get_config()))
    want = {
        "batch_size": 128, "num_epochs": 90, "model.columns": 2, "model.num_classes": 1000,
        "model.activation": "relu", "model.dropout_rate": 0.5, "model.dropout_scale": "test",
        "model.lrn.enabled": True, "model.lrn.size": 5, "model.lrn.k": 2.0, "model.lrn.alpha": 1e-4,
        "model.lrn.beta": 0.75, "model.pool.size": 3, "model.pool.stride": 2, "data.image_size": 256,
        "data.crop_size": 224, "data.normalization": "mean_image", "augment.crop": True, "augment.flip": True,
        "augment.pca_std": 0.1, "optimizer.learning_rate": 0.01, "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 0.0005, "optimizer.plateau.factor": 0.1, "optimizer.plateau.max_drops": 3,
        "eval.views": 10,
    }  # fmt: skip
    assert {field: fields[field] for field in want} == want


def test_neurons_of_the_paper():
    """Section 1 and figure 2: 150,528 values of an image, and 650,000 neurons."""
    config = paper.get_config()
    assert config.data.crop_size**2 * config.data.channels == 150_528
    outputs = [math.prod(layer.output) for layer in layer_table(config)]
    assert outputs == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert sum(outputs) == 659_272
