"""The paper's two columns on two devices, scaled to the 28x28 greyscale photographs of Fashion-MNIST.

    python -m alexnet_jax.main --config=configs/quickstart.py

441,754 parameters. On two CPU cores the top-1 error is 0.120 on the 10,000 test images (seed 0, ten views).
Width, batch size, learning rate and epochs were chosen on the validation split.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    config = paper.get_config()
    config.name = "quickstart"
    config.num_epochs = 6
    config.batch_size = 64
    config.model.num_classes = 10

    # Maps: 24, pooled 11, 11, pooled 5, 5, 5, 5, pooled 2. Kernels and inputs are not the paper's, so
    # init_std is not either: its product with sqrt(weights of a kernel) is that of the paper's layer.
    layers = config.model.layers
    layers.conv1.update(kernel=5, stride=1, padding=(2, 2), features=24, init_std=0.038)
    layers.conv2.update(features=48, init_std=0.02)
    layers.conv3.update(features=64, init_std=0.0231)
    layers.conv4.update(features=64, init_std=0.0245)
    layers.conv5.update(features=48, init_std=0.0245)
    layers.fc6.update(features=512, init_std=0.069)
    layers.fc7.update(features=512, init_std=0.0283)
    layers.fc8.update(init_std=0.0283)

    config.data.name = "fashion_mnist_shipped"
    config.data.channels = 1
    config.data.image_size = 28
    config.data.crop_size = 24
    config.data.train_split = "train[:55000]"
    config.data.val_split = "train[55000:]"
    config.data.test_split = "test"

    config.optimizer.learning_rate = 0.02
    config.optimizer.plateau.patience = 1
    config.checkpoint.every_steps = 100
    config.eval.batch_size = 250
    return config
