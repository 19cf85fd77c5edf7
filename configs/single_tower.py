"""AlexNet as the common tutorials draw it: one tower, 227x227 input, dropout before and after fc6.

    python -m alexnet_jax.main --config=configs/single_tower.py

62,378,344 parameters, 1,135,256,096 multiply-adds: the tutorials' "62.3 million". There is no published
error, because this is not the paper's network. Every kernel sees all maps of the layer before. Dropout moves
one layer down, as in torchvision, and the outputs that it keeps are scaled up in training.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    config = paper.get_config()
    config.name = "single_tower"
    config.model.columns = 1
    config.data.crop_size = 227
    config.model.dropout_scale = "train"
    layers = config.model.layers
    layers.conv1.padding = (0, 0)
    layers.conv5.then = ("activation", "pool", "dropout")
    layers.fc7.then = ("activation",)
    return config
