"""The released code's net #145 and its training as it ran: the network behind the published errors.

    python -m alexnet_jax.main --config=configs/code2012.py           # ILSVRC-2012
    python -m alexnet_jax.main --config=configs/code2012.py:2010      # ILSVRC-2010

60,965,224 parameters. Logged errors, ten views, top-1 / top-5: 40.66 / 18.21 % on ILSVRC-2012 validation
(layer-params-145.cfg:182), 37.47 / 17.00 % on ILSVRC-2010 test (layer-params-145-2010.cfg:177). File names
refer to github.com/computerhistory/AlexNet-Source-Code. All fields not set here are those of
configs/paper.py, which follows the code if the text is silent: normalisation within a column, colour noise
along standard deviations, 33 offsets per axis, 55x55 maps, no decay of biases.
"""

import ml_collections

from configs import paper


def get_config(year: str = "2012") -> ml_collections.ConfigDict:
    config = paper.get_config(year)
    config.name = "code2012" if year == "2012" else "code2012-2010"

    layers = config.model.layers  # layers/layers-145.cfg
    layers.conv1.then = ("lrn", "pool", "activation")  # :9-63, normalisation of signed values
    layers.conv2.then = ("activation", "lrn", "spatial_norm", "pool")  # :95-117
    layers.conv5.then = ("pool", "activation")  # :220-236, the same function
    for name in ("conv3", "conv4", "conv5"):
        layers[name].init_std = 0.03  # :143-214
    config.model.lrn.alpha = 1e-4 / 5  # layer.py:1183 divides by the size
    config.model.pool.ceil = True  # layer.py:1164

    config.data.reshuffle = False  # convdata_jpeg.py:262
    config.augment.crop_group = 32  # convdata_jpeg.py:77, 238
    config.augment.mean_crop = "centre"  # convdata_jpeg.py:95
    config.augment.pca_divisor = 1.1  # convdata_jpeg.py:177

    # The epochs of the log: rates changed by hand, and the 2012 run's in the order of 2010's, whose log says
    # what was changed (layer-params-145-2010.cfg:165-180).
    epochs = {"2012": (25, 51, 67, 72, 79, 91), "2010": (23, 51, 68, 72, 78, 93)}[year]
    first, second, quiet, freeze, third, config.num_epochs = epochs
    config.optimizer.drop_epochs = (first, second, third)
    config.augment.pca_epochs = config.optimizer.conv1_drop_epoch = quiet
    config.optimizer.conv1_freeze_epoch = freeze  # biases too: epsB is 0 there (:1-15)
    config.optimizer.bias_rate = 2.0  # epsB = 0.02, beside epsW = 0.01
    # 0.02 still at the end of 2012's run; 0.002 at the end of 2010's, and no log says since when.
    config.optimizer.bias_rate_drops = False
    return config
