"""torchvision's alexnet: the single tower of "One weird trick" (Krizhevsky 2014), without normalisation.

    python -m alexnet_jax.main --config=configs/torchvision.py
    python -m alexnet_jax.weights import --from=torchvision alexnet.pth --workdir=runs/torchvision

61,100,840 parameters, 714,188,480 multiply-adds. Published: accuracy 56.522 / 79.066 % top-1 / top-5 on
ILSVRC-2012 validation, one view. Dropout comes before fc6 and fc7. Three points of torchvision's recipe are
not followed: crops of random size and shape (crops here are 224x224), the learning rate outside the velocity,
and initial weights from a uniform distribution.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    config = paper.get_config()
    config.name = "torchvision"
    config.batch_size = 256
    config.model.columns = 1
    config.model.dropout_scale = "train"
    layers = config.model.layers
    layers.conv1.update(features=64, padding=(2, 2), then=("activation", "pool"))
    layers.conv2.update(features=192, then=("activation", "pool"))
    layers.conv4.features = 256
    layers.conv5.then = ("activation", "pool", "dropout")
    layers.fc7.then = ("activation",)
    # PyTorch draws kernels uniformly with this deviation, 1 / sqrt(3 inputs), and biases like them; 0 here.
    inputs = dict(conv1=363, conv2=1600, conv3=1728, conv4=3456, conv5=2304, fc6=9216, fc7=4096, fc8=4096)
    for name, count in inputs.items():
        layers[name].update(init_std=(3 * count) ** -0.5, bias=0.0)

    config.data.normalization = "channel_mean_std"
    config.augment.pca_std = 0.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_biases = True
    config.optimizer.drop_epochs = (30, 60)
    return config
