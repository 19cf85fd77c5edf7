"""Caffe's AlexNet (models/bvlc_alexnet), the most widely reproduced one.

    python -m alexnet_jax.main --config=configs/caffe.py
    python -m alexnet_jax.weights import --from=caffe bvlc_alexnet.caffemodel --workdir=runs/caffe

60,965,224 parameters. Published: accuracy 57.1 / 80.2 % top-1 / top-5 on ILSVRC-2012 validation, one view
(its readme.md). The numbers are from train_val.prototxt and solver.prototxt. Two points are not followed.
Caffe's recipe warps images to 256x256, while this project scales and crops them. Caffe also rounds the number
of pooling windows up, which makes no difference for these maps.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    config = paper.get_config()
    config.name = "caffe"
    config.batch_size = 256
    config.data.crop_size = 227
    config.model.lrn.update(
        k=1.0, alpha=1e-4 / 5, across_columns=True
    )  # lrn_layer.cpp:120 divides by the size
    config.model.dropout_scale = "train"
    layers = config.model.layers
    layers.conv1.padding = (0, 0)
    for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
        layers[name].bias = 0.1
    layers.fc6.init_std = layers.fc7.init_std = 0.005

    config.augment.pca_std = 0.0
    config.optimizer.bias_rate = 2.0
    config.optimizer.drop_epochs = (20, 40, 60, 80)  # every 100,000 iterations of 256 images
    return config
