"""AlexNet with batch normalisation, trained with LARS in batches of 32,768 images by default.

    python -m alexnet_jax.main --config=configs/large_batch.py
    python -m alexnet_jax.main --config=configs/large_batch.py:65536

60,967,976 parameters. This is not the paper's network but Ginsburg's AlexNet-BN, as in his NVCaffe
(github.com/borisgin/nvcaffe, commit 8896d33, models/alexnet_bn): train_val.prototxt for the network, and
solver_8K, solver_16k and solver_32k.prototxt for the training. LARS is by You, Gitman and Ginsburg (2017,
arXiv 1708.03888), whose abstract reports batches of 8,192 for AlexNet without loss of accuracy. Others report
100 epochs in 11 minutes on 1,024 CPUs with batches of 32,768 (You et al. 2018, arXiv 1709.05011), and 95
epochs in 4 minutes on 1,024 Tesla P40 with batches of up to 65,536 and a top-1 accuracy of 58.7 % (Jia et al.
2018, arXiv 1807.11205). Only the abstracts of these papers were read, and none of their results was
reproduced on ImageNet.

As in NVCaffe: normalised convolutions without response normalisation; weight decay, momentum, trust
coefficient, epochs, power of the decay, initial weights; crops of 227 and reflections without colour noise.
Different here:

- The solvers for large batches name train_val2_fp16.prototxt, which normalises the inputs of conv2 to conv5
  instead, without scale and shift. Here, as in train_val.prototxt, the outputs of all five are normalised.
- Biases of conv1 to conv4, which NVCaffe leaves out, start at 0 and cancel in the normalisation.
- NVCaffe applies trust ratio and decay to every array, and takes the trust ratio from the norm of the loss's
  gradient alone. Here both act on kernels only, with the ratio as in optax. All other parameters have
  `bias_rate` times the learning rate, 0.01 as in the small study (experiments/results/large_batch).
- NVCaffe's warm-up is quadratic, from a rate of 1. Here it is linear, from 0.
- Statistics are those of the whole batch, so that results do not depend on the number of devices. Those of
  one device of N are model.batch_norm.synchronized=False with mesh.data=N.
- Inputs are not divided by 256; the outputs of a normalised layer do not depend on the scale of its inputs.

The learning rates of 8,192, 16,384 and 32,768 images are the solvers'. For other batches no source was found;
theirs is the rate of 32,768 images times the square root of the ratio of the batches.
"""

import ml_collections

from configs import paper

RATES = {8_192: 10.0, 16_384: 24.0, 32_768: 32.0}


def get_config(batch: str = "") -> ml_collections.ConfigDict:
    if batch and not (batch.isdecimal() and int(batch)):
        raise ValueError(f"configs/large_batch.py takes a number of images after the colon, not {batch!r}")
    config = paper.get_config()
    config.name = f"large_batch-{batch}" if batch else "large_batch"
    config.num_epochs = 100
    config.batch_size = images = int(batch or 32_768)
    config.data.crop_size = 227
    config.augment.pca_std = 0.0

    config.model.dropout_scale = "train"
    layers = config.model.layers
    layers.conv1.padding = (0, 0)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        kept = tuple(op for op in layers[name].then if op != "lrn")
        layers[name].update(bias=0.0, then=("batch_norm", *kept))
    for name in ("fc6", "fc7"):
        layers[name].update(bias=0.1, init_std=0.005)

    config.eval.batch_size = min(images, 4096)  # divisible by 1,024 devices
    config.optimizer.name = "lars"
    config.optimizer.learning_rate = RATES.get(images, 32.0 * (images / 32_768) ** 0.5)
    config.optimizer.bias_rate = 0.01
    config.optimizer.schedule = "polynomial"
    config.optimizer.warmup_epochs = 10.0 if images > 16_384 else 5.0  # the solvers': 3.8, 5.1 and 10
    return config
