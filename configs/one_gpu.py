"""The paper's control for its two columns (section 3.2, footnote 2): an equally large network on one GPU.

    python -m alexnet_jax.main --config=configs/one_gpu.py:2010       # as in the paper
    python -m alexnet_jax.main --config=configs/one_gpu.py            # ILSVRC-2012

59,798,312 parameters, 391,514,384 multiply-adds. conv1 to conv4 have half as many kernels; conv5 and the
fully connected layers keep theirs (released code, layers-145-half.cfg). Published: the two columns are better
by 1.7 / 1.2 % top-1 / top-5. Logged on ILSVRC-2010 test, ten views: 39.17 / 18.23 % (:90-100).
"""

import ml_collections

from configs import paper


def get_config(year: str = "2012") -> ml_collections.ConfigDict:
    config = paper.get_config(year)
    config.name = "one_gpu" if year == "2012" else "one_gpu-2010"
    config.model.columns = 1
    for name in ("conv1", "conv2", "conv3", "conv4"):
        config.model.layers[name].features //= 2
    return config
