"""First half of "1 CNN*" (section 7, table 2): a sixth convolutional layer, trained on all of ImageNet.

    python -m alexnet_jax.main --config=configs/pretrain22k.py --config.data.name=folder --config.data.dir=DIR

146,949,075 parameters. ImageNet's release of autumn 2011, 15 million images, is in no TFDS data set: DIR has
a folder for each synset under train/ and val/. conv6 lies over the last pooling layer (section 7). What the
paper leaves open is the released code's (layers-146-2011.cfg): 128 kernels of 3x3 a column on both columns'
maps, biases of 1, 21,843 classes. Two things there that the paper has not are left out: initial weights of
0.03, as in conv3 to conv5, and a linear layer of 2048 units before the classifier, which spares it 36 million
parameters. No error is published for this half; for the release of autumn 2009 (10,184 classes) 67.4 / 40.9 %
top-1 / top-5 (section 6).
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
