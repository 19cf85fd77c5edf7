"""First half of "1 CNN*" (section 7, table 2): a sixth convolutional layer, trained on all of ImageNet.

    python -m alexnet_jax.main --config=configs/pretrain22k.py --config.data.name=folder --config.data.dir=DIR

146,949,075 parameters. No TFDS data set has ImageNet's release of autumn 2011 (15 million images). DIR is a
folder of pictures with train/SYNSET/* and val/SYNSET/*. conv6 follows the last pooling layer (section 7). The
released code decides the rest (layers-146-2011.cfg): 128 kernels of 3x3 per column, on the maps of both
columns, biases of 1, and 21,843 classes. Two features of the code that the paper does not mention are left
out: initial weights of 0.03, as in conv3 to conv5, and a linear layer of 2048 units before the classifier,
which saves the latter 36 million parameters. No error is published for this half. The release of autumn 2009
(10,184 classes) has 67.4 / 40.9 % top-1 / top-5 (section 6).
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    config = paper.get_config()
    config.name = "pretrain22k"
    config.model.num_classes = 21843
    layers = config.model.layers
    layers.conv6 = layers.conv5.copy_and_resolve_references()
    layers.conv6.update(gather=True, then=("activation",))

    config.data.name = "folder"
    config.data.store = "jpeg"
    config.data.val_split = config.data.test_split = "val"
    return config
