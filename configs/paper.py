"""The network and recipe of Krizhevsky, Sutskever and Hinton (2012), number by number.

    python -m alexnet_jax.main --config=configs/paper.py            # ILSVRC-2012
    python -m alexnet_jax.main --config=configs/paper.py:2010       # ILSVRC-2010, as in table 1

Two columns, 60,965,224 parameters, 724,406,816 multiply-adds per image. Published errors, ten views,
top-1 / top-5: 40.7 / 18.2 % on ILSVRC-2012 validation, 37.5 / 17.0 % on ILSVRC-2010 test (tables 1, 2).

This is the only place where a number of the paper is written; the code has no defaults of its own. The
other configurations are short diffs of this one. "CODE" marks choices that the paper leaves open and the
released code decides (github.com/computerhistory/AlexNet-Source-Code, layers/layers-145.cfg and the files
named).
"""

import ml_collections


def get_config(year: str = "2012") -> ml_collections.ConfigDict:
    if year not in ("2010", "2012"):
        raise ValueError(f"configs/paper.py takes 2010 or 2012 after the colon, not {year!r}")
    d = ml_collections.ConfigDict
    config = d()
    config.name = "paper" if year == "2012" else "paper-2010"
    config.seed = 0
    config.num_epochs = 90  # section 5: "roughly 90 cycles through the training set"
    config.batch_size = 128  # section 5
    config.micro_batches = 1  # parts of a device's batch, computed one after the other to save memory
    # Another run's workdir, from whose best checkpoint these layers are taken; empty: all are drawn.
    config.init_from = ""
    config.init_layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")

    config.model = d()
    config.model.columns = 2  # section 3.2, figure 2: one column on each of two devices
    config.model.width = 1.0  # multiplies the features of every hidden layer; init_std follows the fan-in
    config.model.num_classes = 1000  # section 3.5
    config.model.activation = "relu"  # section 3.1; tanh is the comparison of figure 1
    config.model.gather = True  # section 3.5: columns meet where a layer's `gather` says; False: nowhere
    config.model.dropout_rate = 0.5  # section 4.2
    # Section 4.2: outputs are multiplied by 0.5 at "test". "train" divides what is kept in training instead.
    config.model.dropout_scale = "test"
    config.model.dtype = "float32"  # of the computation; parameters are always float32
    # Precision of float32 products on accelerators. "default": TF32 (10 bits) on NVIDIA GPUs from Ampere on,
    # and one pass of bfloat16 (7 bits) on TPUs. "highest": float32, as on the GTX 580, but several times
    # slower. CPUs always compute in float32.
    config.model.precision = "default"
    # Section 3.3. The sum runs over maps of one column: CODE, and across the devices it would need an
    # exchange that section 3.5 excludes. alpha is used as printed; CODE divides it by the size.
    config.model.lrn = d(dict(enabled=True, size=5, k=2.0, alpha=1e-4, beta=0.75, across_columns=False))
    # CODE has a second normalisation after conv2's, of each map over its neighbours; the paper has not, and
    # no `then` names it.
    config.model.spatial_norm = d(dict(size=5, k=1.0, alpha=0.001 / 25, beta=0.75))
    # Not in the paper, and no `then` here names it; configs/large_batch.py uses it. `momentum` is that of the
    # running averages; `synchronized` takes statistics over all devices of the axis `data`. False takes
    # those of one, and mesh.data must be given.
    config.model.batch_norm = d(dict(epsilon=1e-4, momentum=0.9, synchronized=True))
    # Section 3.4: overlapping. CODE rounds the number of windows up, which for 55, 27 and 13 is the same.
    config.model.pool = d(dict(size=3, stride=2, ceil=False))

    # Section 3.5, figure 2. `features` counts both columns. `gather`: the layer sees the other column's
    # maps as well. `then`: what follows, in order. `padding`: zeros (before, after) on both axes; the
    # paper gives none. conv1 reaches 55x55 from 224 with three zeros at the bottom and right (CODE,
    # layer.py:1004), conv2 to conv5 keep their size (CODE).
    # Section 5: all weights N(0, 0.01); biases 1 in conv2, conv4, conv5 and the hidden fully connected
    # layers, 0 elsewhere.
    def conv(kernel, stride, padding, features, gather, bias, then):
        return d(dict(enabled=True, kernel=kernel, stride=stride, padding=padding, features=features,
                      gather=gather, init_std=0.01, bias=bias, then=then))  # fmt: skip

    def dense(features):
        # Section 4.2: dropout on the outputs of fc6 and fc7.
        return d(dict(enabled=True, features=features, gather=True, init_std=0.01, bias=1.0,
                      then=("activation", "dropout")))  # fmt: skip

    norm_pool = ("activation", "lrn", "pool")
    layers = config.model.layers = d()
    layers.conv1 = conv(11, 4, (0, 3), 96, gather=False, bias=0.0, then=norm_pool)
    layers.conv2 = conv(5, 1, (2, 2), 256, gather=False, bias=1.0, then=norm_pool)
    layers.conv3 = conv(3, 1, (1, 1), 384, gather=True, bias=0.0, then=("activation",))
    layers.conv4 = conv(3, 1, (1, 1), 384, gather=False, bias=1.0, then=("activation",))
    layers.conv5 = conv(3, 1, (1, 1), 256, gather=False, bias=1.0, then=("activation", "pool"))
    layers.fc6 = dense(4096)
    layers.fc7 = dense(4096)
    layers.fc8 = d(dict(init_std=0.01, bias=0.0))  # split over its inputs; as many outputs as classes

    config.data = d()
    config.data.name = f"ilsvrc/{year}"  # or another TFDS name, or "folder"
    # Where the prepared data lies; empty: TFDS's own folder. For "folder", the one with train/CLASS/* and
    # val/CLASS/*.
    config.data.dir = ""
    config.data.manual_dir = ""  # where the official archives lie
    # "jpeg" reads what TFDS stores; "raw" a copy of it as decoded pixels, 8 times as fast and 5 times as
    # large (262 GB for ILSVRC-2012). The pixels are the same. A "folder" is read as it is.
    config.data.store = "raw"
    config.data.channels = 3
    config.data.image_size = 256  # section 2: shorter side to 256, central 256x256
    config.data.crop_size = 224  # section 4.1
    config.data.normalization = "mean_image"  # section 2: raw RGB less the training set's mean, per pixel
    config.data.train_split = "train"
    config.data.val_split = "validation"
    config.data.test_split = "validation" if year == "2012" else "test"  # 2012 has no labelled test set
    config.data.reshuffle = True  # each epoch in a new order; CODE keeps that of the first
    config.data.threads = (
        0  # that read and decode; 0: one for each core, at least 4, at most 4096 images at once
    )

    config.augment = d()
    config.augment.crop = True  # section 4.1; offsets 0 to 32 on each axis (CODE, convdata_jpeg.py:238)
    config.augment.crop_group = 1  # images that share a crop and a flip; CODE: 32
    config.augment.flip = True  # section 4.1
    config.augment.mean_crop = "image"  # section 2: of each pixel its mean; CODE: the "centre" for all crops
    # Section 4.1: the deviation of alpha. The noise is alpha times the *standard deviation* along each
    # eigenvector (CODE, convdata_jpeg.py:65); the eigenvalue that the paper prints is 1,483 grey levels.
    config.augment.pca_std = 0.1
    config.augment.pca_divisor = 1.0  # of the image with noise, in training; CODE: 1.1
    config.augment.pca_epochs = -1  # with noise; -1: all. CODE: off for the last 24

    config.optimizer = d()
    config.optimizer.name = "momentum"  # section 5; "lars": a layer's rate times trust_coefficient |w| / |g|
    config.optimizer.trust_coefficient = 0.001
    config.optimizer.learning_rate = 0.01  # section 5, for all layers
    config.optimizer.momentum = 0.9  # section 5
    config.optimizer.weight_decay = 0.0005  # section 5
    config.optimizer.decay_biases = False  # CODE, src/layer.cu:565
    # Section 5: one rate for all layers. CODE: biases at 2 times the first rate, without drops.
    config.optimizer.bias_rate = 1.0  # times the learning rate; batch normalisation's parameters have it too
    config.optimizer.bias_rate_drops = True
    # Section 5: divided by 10 when the validation error stops improving, three times. The authors judged
    # by eye (CODE logs: epochs 23, 51, 78); here: no lower error in `patience` validations.
    config.optimizer.plateau = d(dict(factor=0.1, patience=5, max_drops=3))
    config.optimizer.drop_epochs = ()  # instead of the plateau: after how many epochs the rate drops
    # "plateau" unless there are drop_epochs; "epochs": drops at drop_epochs only, even if there are none;
    # "polynomial": (1 - epochs / num_epochs)^power.
    config.optimizer.schedule = "plateau"
    config.optimizer.power = 2.0
    config.optimizer.warmup_epochs = 0.0  # in which the rate rises linearly from 0
    config.optimizer.conv1_drop_epoch = -1  # when the rate of conv1's kernels drops once more; -1: never
    config.optimizer.conv1_freeze_epoch = -1  # when conv1 is kept as it is; -1: never

    config.mesh = d()
    config.mesh.column = -1  # -1: model.columns where the devices allow, else 1
    config.mesh.data = -1  # -1: all that is left; 1 on a CPU
    # On GPUs, only operations that give the same bits in every run of the same program. CPUs and TPUs have
    # no others.
    config.mesh.deterministic = True
    # ReLU, response normalisation and pooling in one kernel on NVIDIA GPUs, and by other operations on TPUs:
    # the same function, up to rounding. It has been compiled for both, but has not run on either.
    config.mesh.fused = False
    # Several processes end, to be started again, after so long without a step or a batch; 0: never. Where
    # something is compiled or saved, after half an hour more.
    config.mesh.watchdog_minutes = 30.0

    config.checkpoint = d()
    config.checkpoint.every_steps = 1000  # besides the one at every validation
    config.checkpoint.keep = 2  # latest ones; the best one is kept too

    config.eval = d()
    config.eval.views = 10  # section 4.1: corners and centre, flipped too, averaged after the softmax
    config.eval.batch_size = 128
    config.eval.step = -1  # -1: the best checkpoint
    return config
