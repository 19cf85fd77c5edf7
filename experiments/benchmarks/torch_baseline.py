"""The paper's two-column network in idiomatic PyTorch, for experiments/benchmark.py.

The columns are groups of convolutions. The work is that of configs/paper.py, in float32. The images are
random floats that are on the device already, so that there is no augmentation.
"""

import torch
from torch import nn
from torch.nn import functional as F


class AlexNet(nn.Module):
    """Map float [batch, 3, 224, 224], the mean subtracted, to logits [batch, 1000]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, 1000)

    def forward(self, x):
        x = F.pad(x, (0, 3, 0, 3))
        x = F.max_pool2d(response_norm(F.relu(self.conv1(x))), 3, 2)
        x = F.max_pool2d(response_norm(F.relu(self.conv2(x))), 3, 2)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2)
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))
        x = self.dropout(F.relu(self.fc7(x)))
        return self.fc8(x)

    def dropout(self, x):
        """Apply section 4.2: PyTorch doubles kept units in training, the paper halves all at test."""
        return 0.5 * F.dropout(x, 0.5, self.training)


def response_norm(x):
    """Normalise over the maps of one column (section 3.3); F.local_response_norm has no groups."""
    squares = x.square().unflatten(1, (2, -1))  # [batch, columns, maps, height, width]
    means = F.avg_pool3d(squares, (5, 1, 1), stride=1, padding=(2, 0, 0)).flatten(1, 2)
    return x / (2 + 5e-4 * means).pow(0.75)  # 5e-4 of a mean of five maps is the paper's 1e-4 of their sum


def start(what: str, batch: int, compiled: bool, channels_last: bool, threads: int, platform: str):
    """Return (a step of `train` or `infer`, facts); `platform` is JAX's, cpu or gpu."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if platform == "gpu" else "cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = AlexNet().to(device, memory_format=layout).train(what == "train")
    images = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=layout)
    labels = torch.randint(0, 1000, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=True)

    def loss(images, labels):
        return F.cross_entropy(model(images), labels)

    def log_softmax(images):
        return F.log_softmax(model(images), dim=1)

    if compiled:
        loss, log_softmax = torch.compile(loss), torch.compile(log_softmax)

    def train():
        optimizer.zero_grad()
        loss(images, labels).backward()
        optimizer.step()

    @torch.inference_mode()
    def infer():
        log_softmax(images)

    def step():
        train() if what == "train" else infer()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, {"threads": torch.get_num_threads(), "device": str(device)}
