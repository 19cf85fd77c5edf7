"""Second half of "1 CNN*" (section 7, table 2): the pre-trained convolutions, fine-tuned on ILSVRC-2012.

    python -m alexnet_jax.main --config=configs/finetune.py    # init_from: runs/pretrain22k

61,555,304 parameters. All layers but the classifier start from the best checkpoint of `init_from`, as in the
released code (layers-146-2012-2011.cfg, where only fc1000 has no initWFunc). Published, ten views, top-1 /
top-5 on ILSVRC-2012 validation: 39.0 / 16.6 %. The paper gives no learning rate for fine-tuning. The log has
0.001 and two drops (layer-params-146-2012-2011.cfg:182-192). It also has a rate for conv1, a tenth of the
others' and later 0, and one for the classifier, at first ten times the others'. These two are not followed.
"""

import ml_collections

from configs import paper, pretrain22k


def get_config() -> ml_collections.ConfigDict:
    config = paper.get_config()
    config.name = "finetune"
    config.init_from = "runs/pretrain22k"
    config.init_layers += ("conv6",)
    config.model.layers.conv6 = pretrain22k.get_config().model.layers.conv6
    config.optimizer.learning_rate = 0.001
    config.optimizer.plateau.max_drops = 2
    return config
