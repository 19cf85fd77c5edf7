"""Figure 1: a four-layer network on CIFAR-10, with ReLUs or with tanh, without regularisation.

    python -m alexnet_jax.main --config=configs/cifar10.py            # ReLU
    python -m alexnet_jax.main --config=configs/cifar10.py:tanh

89,578 parameters. Published: ReLUs reach a training error of 25 % in a sixth of the epochs that tanh needs
(section 3.1). The paper gives no other detail of the network. Layers and initial weights are those of the
nearest four-layer network of cuda-convnet (example-layers/layers-19pct.cfg). Weight decay and colour noise
are off, and every image is shown as it is. As in the paper, each activation has its own learning rate, which
does not drop. It is the fastest with another seed: of 0.002, 0.003 and 0.005 over five epochs for ReLU, and
of 0.01 and 0.03 (which do not differ) over ten epochs for tanh.

To train on any copy of CIFAR-10 as pictures, train/CLASS/* and test/CLASS/*, give --config.data.name=folder
--config.data.dir=DIR.
"""

import ml_collections

from configs import paper


def get_config(activation: str = "relu") -> ml_collections.ConfigDict:
    if activation not in ("relu", "tanh"):
        raise ValueError(f"configs/cifar10.py takes relu or tanh after the colon, not {activation!r}")
    config = paper.get_config()
    config.num_epochs = {"relu": 12, "tanh": 50}[activation]
    config.name = "cifar10" if activation == "relu" else f"cifar10-{activation}"
    config.model.columns = 1
    config.model.num_classes = 10
    config.model.activation = activation
    config.model.pool.ceil = True  # maps of 32, 16, 8, 4

    layers = config.model.layers
    padded = dict(kernel=5, stride=1, padding=(2, 2), gather=False, bias=0.0)
    layers.conv1.update(padded, features=32, init_std=0.0001, then=("pool", "activation"))
    layers.conv2.update(padded, features=32, init_std=0.01, then=("activation", "average_pool"))
    layers.conv3.update(padded, features=64, init_std=0.01, then=("activation", "average_pool"))
    for name in ("conv4", "conv5", "fc6", "fc7"):
        del layers[name]
    config.init_layers = ("conv1", "conv2", "conv3")

    config.data.name = "cifar10"
    config.data.store = "jpeg"
    config.data.image_size = config.data.crop_size = 32
    config.data.train_split = "train[:45000]"
    config.data.val_split = "train[45000:]"
    config.data.test_split = "test"
    config.augment.crop = config.augment.flip = False
    config.augment.pca_std = 0.0
    config.optimizer.learning_rate = {"relu": 0.003, "tanh": 0.01}[activation]
    config.optimizer.plateau.patience = 1000  # the rate does not drop
    config.optimizer.bias_rate = 2.0
    config.optimizer.weight_decay = 0.0
    config.eval.views = 1
    return config
