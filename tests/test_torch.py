"""Every layer's outputs, every parameter's gradient and training steps against PyTorch.

`torchvision` is torchvision's own class. The other networks are written here in PyTorch's functions, from the
paper and from what their configurations' docstrings name: numbers are literal, none is read from configs/.
PyTorch divides LRN's alpha by the size, 5, so that the paper's 1e-4 is 5e-4 here. It computes in float64:
what is left between the two is the rounding of our float32.

`make oracle` installs PyTorch and runs this; elsewhere it is skipped where PyTorch is not installed.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_near
from helpers.networks import (
    NETWORKS,
    assert_close,
    config_of,
    draw_views,
    draw_weights,
    our_activations,
    to_ours,
    to_theirs,
)

from alexnet_jax import layers, optimizer
from alexnet_jax.network import AVERAGES
from alexnet_jax.network import Network as Columns
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state, loss_and_gradients, make_train_step, new_state

torch = pytest.importorskip("torch")
F = torch.nn.functional

try:
    import torchvision
except RuntimeError:
    # Its compiled operators, of which AlexNet uses none, are for PyTorch with CUDA. Beside PyTorch for CPUs
    # they do not load, and the import misses two of them.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float least) -> Tensor")
    import torchvision


class Network:
    """Layers by name, keeping every output.

    `ours`, our activations, decide for the gradients which of two outputs is larger, or whether one is above
    zero: where float32 and float64 disagree on that, in one of 100,000 windows, the gradients differ by a
    thousandth, and neither is wrong. What the outputs are, the test without `ours` has seen.
    """

    def __init__(self, weights, ours=None):
        self.weights, self.ours, self.record = weights, ours, {}

    def keep(self, name, x):
        self.record[name] = x
        return x

    def conv(self, name, x, **numbers):
        w = self.weights
        return self.keep(name, F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **numbers))

    def full(self, name, x):
        w = self.weights
        return self.keep(name, F.linear(x.flatten(1), w[f"{name}.weight"], w[f"{name}.bias"]))

    def relu(self, name, x):
        y = F.relu(x) if self.ours is None else torch.where(self.ours[name] > 0, x, 0)
        return self.keep(f"{name}/activation", y)

    def lrn(self, name, x, columns, alpha, k):
        parts = [F.local_response_norm(part, 5, alpha, 0.75, k) for part in x.chunk(columns, dim=1)]
        return self.keep(f"{name}/lrn", torch.cat(parts, dim=1))

    def pool(self, name, x):
        y = F.max_pool2d(x, 3, 2)
        if self.ours is not None:
            before = self.ours.get(f"{name}/lrn", self.ours[f"{name}/activation"])
            _, places = F.max_pool2d(before, 3, 2, return_indices=True)
            y = x.flatten(2).gather(2, places.flatten(2)).view_as(y)
        return self.keep(f"{name}/pool", y)

    def scale(self, name, x, factor):
        return self.keep(f"{name}/dropout", x * factor)


def paper(net, x, training):
    kept = 1.0 if training else 0.5  # section 4.2; nothing is dropped in these tests
    x = net.conv("conv1", F.pad(x, (0, 3, 0, 3)), stride=4)
    x = net.pool("conv1", net.lrn("conv1", net.relu("conv1", x), 2, 5e-4, 2.0))
    x = net.conv("conv2", x, padding=2, groups=2)
    x = net.pool("conv2", net.lrn("conv2", net.relu("conv2", x), 2, 5e-4, 2.0))
    x = net.relu("conv3", net.conv("conv3", x, padding=1))
    x = net.relu("conv4", net.conv("conv4", x, padding=1, groups=2))
    x = net.relu("conv5", net.conv("conv5", x, padding=1, groups=2))
    x = net.pool("conv5", x)
    x = net.scale("fc6", net.relu("fc6", net.full("fc6", x)), kept)
    x = net.scale("fc7", net.relu("fc7", net.full("fc7", x)), kept)
    return net.full("fc8", x)


def caffe(net, x, training):
    x = net.conv("conv1", x, stride=4)
    x = net.pool("conv1", net.lrn("conv1", net.relu("conv1", x), 1, 1e-4, 1.0))
    x = net.conv("conv2", x, padding=2, groups=2)
    x = net.pool("conv2", net.lrn("conv2", net.relu("conv2", x), 1, 1e-4, 1.0))
    x = net.relu("conv3", net.conv("conv3", x, padding=1))
    x = net.relu("conv4", net.conv("conv4", x, padding=1, groups=2))
    x = net.relu("conv5", net.conv("conv5", x, padding=1, groups=2))
    x = net.pool("conv5", x)
    x = net.scale("fc6", net.relu("fc6", net.full("fc6", x)), 1.0)
    x = net.scale("fc7", net.relu("fc7", net.full("fc7", x)), 1.0)
    return net.full("fc8", x)


def single_tower(net, x, training):
    x = net.conv("conv1", x, stride=4)
    x = net.pool("conv1", net.lrn("conv1", net.relu("conv1", x), 1, 5e-4, 2.0))
    x = net.conv("conv2", x, padding=2)
    x = net.pool("conv2", net.lrn("conv2", net.relu("conv2", x), 1, 5e-4, 2.0))
    x = net.relu("conv3", net.conv("conv3", x, padding=1))
    x = net.relu("conv4", net.conv("conv4", x, padding=1))
    x = net.relu("conv5", net.conv("conv5", x, padding=1))
    x = net.scale("conv5", net.pool("conv5", x), 1.0)
    x = net.scale("fc6", net.relu("fc6", net.full("fc6", x)), 1.0)
    x = net.relu("fc7", net.full("fc7", x))
    return net.full("fc8", x)


TORCHVISION = {  # our layer: torchvision's, and what follows it
    "conv1": ("features.0", {"activation": "features.1", "pool": "features.2"}),
    "conv2": ("features.3", {"activation": "features.4", "pool": "features.5"}),
    "conv3": ("features.6", {"activation": "features.7"}),
    "conv4": ("features.8", {"activation": "features.9"}),
    "conv5": ("features.10", {"activation": "features.11", "pool": "features.12", "dropout": "classifier.0"}),
    "fc6": ("classifier.1", {"activation": "classifier.2", "dropout": "classifier.3"}),
    "fc7": ("classifier.4", {"activation": "classifier.5"}),
    "fc8": ("classifier.6", {}),
}


def torchvision_alexnet(net, x, training):
    """torchvision's class, without dropout; its pooling to 6x6 finds 6x6 maps, and leaves them."""
    with torch.device("meta"):
        module = torchvision.models.alexnet(weights=None, dropout=0.0)
    state = {}
    for name, (linear, then) in TORCHVISION.items():
        for kind in ("weight", "bias"):
            state[f"{linear}.{kind}"] = net.weights[f"{name}.{kind}"]
        module.get_submodule(linear).register_forward_hook(keep(net, name))
        for op, theirs in then.items():
            submodule = module.get_submodule(theirs)
            submodule.inplace = False
            submodule.register_forward_hook(keep(net, name, op))
    assert set(state) == set(module.state_dict())
    logits = torch.func.functional_call(module, state, (x,))
    net.record["conv5/dropout"] = net.record["conv5/dropout"].unflatten(1, (256, 6, 6))  # it is after flatten
    return logits


def keep(net, name, op=None):
    def hook(module, inputs, output):
        if net.ours is not None and op in ("activation", "pool"):
            return net.relu(name, *inputs) if op == "activation" else net.pool(name, *inputs)
        return net.keep(f"{name}/{op}" if op else name, output)

    return hook


BUILD = {"paper": paper, "caffe": caffe, "single_tower": single_tower, "torchvision": torchvision_alexnet}


def to_torch(arrays, requires_grad=False):
    return {
        name: torch.tensor(array, dtype=torch.float64, requires_grad=requires_grad)
        for name, array in arrays.items()
    }


def to_numpy(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def maps_first(views):
    return torch.tensor(np.moveaxis(views, -1, 1), dtype=torch.float64)


def their_activations(name, weights, views):
    net = Network(to_torch(weights))
    with torch.no_grad():
        BUILD[name](net, maps_first(views), training=False)
    return to_numpy(net.record)


def test_batch_normalisation_equals_pytorch_over_steps():
    """Outputs and running averages of three batches, and then the outputs of evaluation."""
    draw = np.random.default_rng(0)
    norms = {"scale": draw.normal(size=(1, 5)), "shift": draw.normal(size=(1, 5))}
    norms |= {"mean": np.zeros((1, 5)), "variance": np.ones((1, 5))}
    theirs = torch.nn.BatchNorm2d(5, eps=1e-4, momentum=0.1).double()
    with torch.no_grad():
        theirs.weight[:], theirs.bias[:] = (torch.tensor(norms[name][0]) for name in ("scale", "shift"))
    columns = Columns(config_of("large_batch", **{"model.columns": 1}), here=1)

    def normalize(x, training):
        arrays = {name: jnp.asarray(array, jnp.float32) for name, array in norms.items()}
        run = nn.apply(
            lambda network, x: network.normalize("conv1", [x], arrays, training), columns, mutable=[AVERAGES]
        )
        (y,), new = run({}, jnp.asarray(x, jnp.float32))
        return np.moveaxis(np.asarray(y), -1, 1), new.get(AVERAGES, {}).get("conv1", {})

    for _ in range(3):
        x = draw.normal(2, 3, (4, 6, 6, 5)).astype(np.float32)
        y, averages = normalize(x, training=True)
        norms |= averages
        assert_near(y, theirs(maps_first(x)).detach())
        assert_near(averages["mean"][0], theirs.running_mean)
        assert_near(averages["variance"][0], theirs.running_var)
    y, averages = normalize(x, training=False)
    assert averages == {}
    assert_near(y, theirs.eval()(maps_first(x)).detach())


def their_loss_and_gradients(name, weights, views, labels, ours):
    net = Network(to_torch(weights, requires_grad=True), to_torch(ours))
    loss = F.cross_entropy(BUILD[name](net, maps_first(views), training=True), torch.tensor(labels).long())
    loss.backward()
    return loss.item(), {key: tensor.grad.numpy() for key, tensor in net.weights.items()}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return request.param, draw_weights(NETWORKS[request.param][0])


def test_every_layer_equals_pytorch(network):
    name, weights = network
    views = draw_views(name)
    assert_close(our_activations(name, weights, views), their_activations(name, weights, views))


def without_randomness(name, **fields):
    side = NETWORKS[name][2]
    fields = {"data.image_size": side, "model.dropout_rate": 0.0, **fields}
    return config_of(name, **fields, **{"augment.crop": False, "augment.flip": False, "augment.pca_std": 0.0})


def draw_batch(name, number, classes, seed=2):
    """Images, labels, statistics; and the views that these are, in float32 as we compute them."""
    draw, side = np.random.default_rng(seed), NETWORKS[name][2]
    images = draw.integers(0, 256, (number, side, side, 3), dtype=np.uint8)
    labels = draw.integers(0, classes, number).astype(np.int32)
    if name == "torchvision":
        mean = np.array([124.0, 116.0, 104.0], np.float32)
        std = np.array([58.0, 57.0, 57.5], np.float32)
        return images, labels, {"channel_mean": mean, "channel_std": std}, (images - mean) / std
    mean = draw.uniform(90, 140, (side, side, 3)).astype(np.float32)
    return images, labels, {"mean_image": mean}, images - mean


def test_gradient_of_every_parameter_equals_pytorch(network):
    name, weights = network
    config = without_randomness(name)
    images, labels, statistics, views = draw_batch(name, 2, 1000)
    run = jax.jit(loss_and_gradients(config, make_mesh(config)))
    loss, gradients, _ = run(to_ours(weights, NETWORKS[name][1]), images, labels, 0, statistics)
    ours = our_activations(name, weights, views, config)
    want_loss, want = their_loss_and_gradients(name, weights, views, labels, ours)
    assert abs(loss - want_loss) <= 1e-5 * want_loss
    assert_close(to_theirs(gradients), want)


SMALL = {  # the paper's network with an eighth of its maps and units, and ten classes
    "conv1": (12, 3, 11, 11),
    "conv2": (32, 6, 5, 5),
    "conv3": (48, 32, 3, 3),
    "conv4": (48, 24, 3, 3),
    "conv5": (32, 24, 3, 3),
    "fc6": (512, 32 * 6 * 6),
    "fc7": (512, 512),
    "fc8": (10, 512),
}


def test_steps_over_a_drop_of_the_learning_rate_equal_the_papers_rule():
    """v <- 0.9 v - 0.0005 eps w - eps g; w <- w + v, in float64 with PyTorch's gradients (section 5)."""
    weights = draw_weights(SMALL)
    config = without_randomness("paper", **{"model.width": 0.125, "model.num_classes": 10, "batch_size": 4})
    mesh, rule = make_mesh(config), optimizer.make(config)
    params = to_ours(weights, 2)
    state = new_state(params, rule)
    shapes = abstract_state(config, mesh, rule)
    state = jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), state, shapes)
    step = make_train_step(config, mesh, rule)

    w = {name: array.astype(np.float64) for name, array in weights.items()}
    v = dict.fromkeys(w, 0.0)
    for number, (drops, eps) in enumerate([(0, 0.01), (1, 0.001), (1, 0.001)]):
        images, labels, statistics, views = draw_batch("paper", 4, 10, seed=number)
        ours = our_activations("paper", to_theirs(state.params), views, config)
        schedule = state.opt_state["learning_rate"]._replace(drops=jnp.int32(drops))
        state = state.replace(opt_state={**state.opt_state, "learning_rate": schedule})
        state, loss = step(state, images, labels, statistics)

        want_loss, gradients = their_loss_and_gradients("paper", w, views, labels, ours)
        for name, g in gradients.items():
            decay = 0.0005 if name.endswith(".weight") else 0.0
            v[name] = 0.9 * v[name] - decay * eps * w[name] - eps * g
            w[name] = w[name] + v[name]
        assert abs(loss - want_loss) <= 1e-5 * want_loss
        assert_close(to_theirs(state.opt_state["momentum"].trace), v)
        assert_close(to_theirs(state.params), w)


@pytest.mark.parametrize("size, stride", [(3, 2), (2, 2), (3, 3)])
def test_pooling_gives_ties_the_gradient_that_pytorch_gives(size, stride):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 3, (2, 13, 13, 8)).astype(np.float32)
    rows = (13 - size) // stride + 1
    weights = draw.normal(size=(2, rows, rows, 8)).astype(np.float32)
    got = jax.grad(lambda x: (weights * layers.max_pool(x, size, stride)).sum())(x)

    theirs = maps_first(x).requires_grad_()
    (maps_first(weights) * F.max_pool2d(theirs, size, stride)).sum().backward()
    assert_near(np.moveaxis(np.asarray(got), -1, 1), theirs.grad.numpy(), 1e-6)
