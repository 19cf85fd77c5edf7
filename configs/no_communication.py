"""Two columns that meet only at the softmax: net #150 of the released code, which the paper does not report.

    python -m alexnet_jax.main --config=configs/no_communication.py

81,591,720 parameters. conv2 has 160 kernels per column, and each column has 4096 units of its own in fc6 and
fc7 (layers-150.cfg); all else is as in configs/paper.py. Logged on ILSVRC-2012 validation, ten views, top-1 /
top-5: 41.83 / 19.33 %, which is 1.16 / 1.12 worse than #145 (layer-params-150.cfg:165-179). To cut the
connections of the paper's network and change nothing else, use --config=configs/paper.py
--config.model.gather=False.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    config = paper.get_config()
    config.name = "no_communication"
    config.model.gather = False
    layers = config.model.layers
    layers.conv2.features = 320
    layers.fc6.features = layers.fc7.features = 8192
    return config
