"""Second half of "1 CNN*" (section 7, table 2): the pre-trained convolutions, tuned on ILSVRC-2012.

    python -m alexnet_jax.main --config=configs/finetune.py --config.init_from=runs/pretrain22k

61,555,304 parameters. The convolutional layers start from the best checkpoint of `init_from`, the fully
connected ones are drawn anew (released code, layer-params-146-2012-2011.cfg:181-204). Published, ten views,
top-1 / top-5 on ILSVRC-2012 validation: 39.0 / 16.6 %. The paper gives no rate for the tuning; it is that of
section 5.
"""

import ml_collections

from configs import paper, pretrain22k


def get_config() -> ml_collections.ConfigDict:
    config = paper.get_config()
    config.name = "finetune"
    config.init_layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6")
    config.model.layers.conv6 = pretrain22k.get_config().model.layers.conv6
    return config
