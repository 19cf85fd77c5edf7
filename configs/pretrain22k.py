"""First half of "1 CNN*" (section 7, table 2): a sixth convolutional layer, trained on all of ImageNet.

    python -m alexnet_jax.main --config=configs/pretrain22k.py --config.data.name=folder --config.data.dir=DIR

66,556,883 parameters. ImageNet's release of autumn 2011, 15 million images, is in no TFDS data set: DIR has a
folder for each synset under train/ and val/. conv6 lies over the last pooling layer (section 7); its numbers
and the narrow head are the released code's: 128 kernels a column on both columns' maps, 1024 units a column
in a single hidden layer, 21,843 classes (layers-146-2012-2011.cfg, layers-146-2011.cfg). No error is
published for this half; for the release of autumn 2009 (10,184 classes) 67.4 / 40.9 % top-1 / top-5 (section
6).
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
    layers.fc6.features = 2048
    layers.fc7.enabled = False

    config.data.name = "folder"
    config.data.store = "jpeg"
    config.data.val_split = config.data.test_split = "val"
    return config
