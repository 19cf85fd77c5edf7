"""configs/: the size of every named network, and every ablation of the paper as one override of paper.py."""

import importlib
import json
import math

import jax
import numpy as np
import pytest

from alexnet_jax import config as configuration
from alexnet_jax import optimizer
from alexnet_jax.network import RUNNING, init_stds
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state
from alexnet_jax.table import describe, layer_table
from configs import paper
from experiments.sweeps import plan

PAPER = 60_965_224
NETWORKS = {  # parameters, multiply-adds: of FACTS A.1 where it has them, else summed by hand
    "paper": (PAPER, 724_406_816),
    "paper:2010": (PAPER, 724_406_816),
    "code2012": (PAPER, 724_406_816),
    "code2012:2010": (PAPER, 724_406_816),
    "single_tower": (62_378_344, 1_135_256_096),
    "one_gpu": (59_798_312, 391_514_384),
    "one_gpu:2010": (59_798_312, 391_514_384),
    # conv2 with 320 maps and conv3 on 160 of them; 4608 -> 4096 -> 4096 in each column.
    "no_communication": (
        34_944 + (25 * 48 + 1) * 320 + (9 * 160 + 1) * 384 + 663_936 + 442_624
        + 2 * (4609 * 4096 + 4097 * 4096) + 8192 * 1000 + 1000,
        745_197_088,
    ),
    "caffe": (PAPER, 724_406_816),
    "large_batch": (PAPER + 2 * (96 + 256 + 384 + 384 + 256), 724_406_816),  # scales and shifts
    "large_batch:65536": (PAPER + 2 * 1376, 724_406_816),
    "torchvision": (61_100_840, 714_188_480),
    # conv6 on all 256 maps; 21,843 classes.
    "pretrain22k": (
        PAPER + (9 * 256 + 1) * 256 + 4097 * 20_843, 724_406_816 + 36 * 9 * 256 * 256 + 4096 * 20_843,
    ),
    "finetune": (PAPER + (9 * 256 + 1) * 256, 724_406_816 + 36 * 9 * 256 * 256),
    # conv1 7x7 on 3 maps, conv2 5x5 on 12 of 24, conv3 on all 64, conv4 and conv5 on 48.
    "imagenette": (
        148 * 24 + 301 * 64 + 577 * 96 + 433 * 96 + 433 * 64 + 257 * 1024 + 1025 * 1024 + 10_250,
        23**2 * 147 * 24 + 11**2 * 300 * 64 + 25 * (576 * 96 + 432 * 96 + 432 * 64) + 1280 * 1024 + 10_240,
    ),
    "cifar10": (2_432 + 25_632 + 51_264 + 10_250, 1024 * 2400 + 256 * 25_600 + 64 * 51_200 + 10_240),
    "cifar10:tanh": (89_578, 12_298_240),
}  # fmt: skip


def config_of(name):
    file, _, argument = name.partition(":")
    return importlib.import_module(f"configs.{file}").get_config(*[argument] * bool(argument))


@pytest.mark.parametrize("name", NETWORKS)
def test_network_has_its_size(name):
    config = config_of(name)
    configuration.check(config)
    assert config.name == name.replace(":", "-")
    parameters, multiply_adds = NETWORKS[name]
    total = f"total: {parameters:,} parameters, {multiply_adds:,} multiply-adds"
    assert describe(config).splitlines()[-1] == total
    shapes = abstract_state(config, make_mesh(config), optimizer.make(config)).params
    trained = {name: {k: x for k, x in layer.items() if k not in RUNNING} for name, layer in shapes.items()}
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(trained)) == parameters


def test_finetune_takes_all_layers_of_pretrain22k_but_the_classifier():
    ours, theirs = (
        {layer.name: layer for layer in layer_table(config_of(name))} for name in ("finetune", "pretrain22k")
    )
    taken = set(config_of("finetune").init_layers)
    assert {name for name in ours if ours[name] == theirs.get(name)} == taken == set(ours) - {"fc8"}


@pytest.mark.parametrize("name", ["imagenette", "quickstart"])
def test_small_network_keeps_the_gain_of_the_papers_layers(name):
    def gains(config):
        stds = init_stds(config.model)
        return [stds[row.name] * math.sqrt(math.prod(row.kernel[1:-1])) for row in layer_table(config)]

    np.testing.assert_allclose(gains(config_of(name)), gains(paper.get_config()), rtol=0.01)


def test_every_ablation_works_on_imagenette():
    config = config_of("imagenette")
    variants = plan.load_variants("experiments/sweeps/ablations.py", config)
    plan.Plan(variants, config, "configs/imagenette.py", {}, "nowhere", 1)  # checks every one
    maps = [layer.after[0] for layer in layer_table(config) if "pool" in layer.then]
    config.model.pool.size = 2
    assert maps == [layer.after[0] for layer in layer_table(config) if "pool" in layer.then] == [11, 5, 2]


def test_figure1_gives_each_activation_its_rate():
    config = config_of("cifar10")
    variants = plan.load_variants("experiments/sweeps/figure1.py", config)
    runs = plan.Plan(variants, config, "configs/cifar10.py", {"data.dir": "here"}, "nowhere", 1).runs
    for run, name in zip(runs, ("cifar10", "cifar10:tanh"), strict=True):
        planned, expected = json.loads(run.config), config_of(name)
        assert planned["optimizer"]["learning_rate"] == expected.optimizer.learning_rate
        assert planned["model"]["activation"] == expected.model.activation
        assert planned["data"]["dir"] == "here"


FC6 = 9217 * 4096
ABLATIONS = {  # one override: parameters after it
    "tanh": ({"model.activation": "tanh"}, PAPER),
    "no normalisation": ({"model.lrn.enabled": False}, PAPER),
    "pooling without overlap": ({"model.pool.size": 2}, PAPER),  # 55, 27, 13, 6 as before
    "no dropout": ({"model.dropout_rate": 0.0}, PAPER),
    "no colour": ({"augment.pca_std": 0.0}, PAPER),
    "no crops": ({"augment.crop": False}, PAPER),
    "no flips": ({"augment.flip": False}, PAPER),
    "no conv3": ({"model.layers.conv3.enabled": False}, PAPER - 885_120 - 9 * (192 - 128) * 384),
    "no conv4": ({"model.layers.conv4.enabled": False}, PAPER - 663_936),
    # pool5 stays, over conv4's 384 maps.
    "no conv5": ({"model.layers.conv5.enabled": False}, PAPER - 442_624 - FC6 + (36 * 384 + 1) * 4096),
    "no fc6": ({"model.layers.fc6.enabled": False}, PAPER - 4097 * 4096),
    "no fc7": ({"model.layers.fc7.enabled": False}, PAPER - 4097 * 4096),
    "one column": ({"model.columns": 1}, 62_378_344),
    "no connection": (
        {"model.gather": False},
        PAPER - 9 * 128 * 384 - 4608 * 4096 - 2048 * 4096,  # conv3, fc6, fc7 see half as much
    ),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_is_one_override(name):
    override, parameters = ABLATIONS[name]
    config = paper.get_config()
    config.update_from_flattened_dict(override)
    configuration.check(config)
    layers = layer_table(config)
    assert sum(layer.parameters for layer in layers) == parameters
    assert [layer.after[0] for layer in layers if "pool" in layer.then] == [27, 13, 6]
    assert ("lrn" in layers[0].then) == config.model.lrn.enabled
