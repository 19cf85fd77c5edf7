"""Every layer's outputs against ONNX Runtime, at full size and with the same random weights.

`caffe` is a graph that others made: bvlc_alexnet as the onnx package ships it. The graphs of the other
networks are written here in ONNX's operators, from the paper and from what their configurations' docstrings
name: numbers are literal, none is read from configs/. ONNX divides LRN's alpha by the size, 5.
"""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.networks import NETWORKS, assert_close, draw_views, draw_weights, our_activations
from onnx import TensorProto, helper


class Graph:
    """A list of nodes, each named as our activation is; weights are inputs of the graph."""

    def __init__(self):
        self.nodes = []

    def add(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def conv(self, x, name, stride, pads, group=1):
        """`pads` as ONNX has them: top, left, bottom, right."""
        inputs = [x, f"{name}.weight", f"{name}.bias"]
        return self.add("Conv", inputs, name, strides=[stride, stride], pads=pads, group=group)

    def relu(self, x, name):
        return self.add("Relu", [x], f"{name}/activation")

    def lrn(self, x, output, alpha=5e-4):
        """Section 3.3: k=2, n=5, alpha=1e-4, beta=0.75."""
        return self.add("LRN", [x], output, size=5, alpha=alpha, beta=0.75, bias=2.0)

    def lrn_of_each_column(self, x, name):
        columns = [f"{name}/column 0", f"{name}/column 1"]
        self.nodes.append(helper.make_node("Split", [x], columns, axis=1, num_outputs=2))
        normalized = [self.lrn(column, f"{column}, normalized") for column in columns]
        return self.add("Concat", normalized, f"{name}/lrn", axis=1)

    def pool(self, x, name):
        return self.add("MaxPool", [x], f"{name}/pool", kernel_shape=[3, 3], strides=[2, 2])

    def full(self, x, name):
        x = self.add("Flatten", [x], f"{name}/flat", axis=1)
        return self.add("Gemm", [x, f"{name}.weight", f"{name}.bias"], name, transB=1)

    def half(self, x, name):
        """Section 4.2, at test: all outputs times 0.5."""
        half = self.add("Constant", [], f"{name}/half", value_float=0.5)
        return self.add("Mul", [x, half], f"{name}/dropout")

    def dropout(self, x, name):
        """Inverted dropout: nothing at test."""
        return self.add("Dropout", [x], f"{name}/dropout")


def paper(g):
    x = g.conv("views", "conv1", 4, [0, 0, 3, 3])
    x = g.relu(x, "conv1")
    x = g.lrn_of_each_column(x, "conv1")
    x = g.pool(x, "conv1")
    x = g.conv(x, "conv2", 1, [2, 2, 2, 2], group=2)
    x = g.relu(x, "conv2")
    x = g.lrn_of_each_column(x, "conv2")
    x = g.pool(x, "conv2")
    x = g.relu(g.conv(x, "conv3", 1, [1, 1, 1, 1]), "conv3")
    x = g.relu(g.conv(x, "conv4", 1, [1, 1, 1, 1], group=2), "conv4")
    x = g.relu(g.conv(x, "conv5", 1, [1, 1, 1, 1], group=2), "conv5")
    x = g.pool(x, "conv5")
    x = g.half(g.relu(g.full(x, "fc6"), "fc6"), "fc6")
    x = g.half(g.relu(g.full(x, "fc7"), "fc7"), "fc7")
    g.full(x, "fc8")


def single_tower(g):
    x = g.conv("views", "conv1", 4, [0, 0, 0, 0])
    x = g.relu(x, "conv1")
    x = g.lrn(x, "conv1/lrn")
    x = g.pool(x, "conv1")
    x = g.conv(x, "conv2", 1, [2, 2, 2, 2])
    x = g.relu(x, "conv2")
    x = g.lrn(x, "conv2/lrn")
    x = g.pool(x, "conv2")
    x = g.relu(g.conv(x, "conv3", 1, [1, 1, 1, 1]), "conv3")
    x = g.relu(g.conv(x, "conv4", 1, [1, 1, 1, 1]), "conv4")
    x = g.relu(g.conv(x, "conv5", 1, [1, 1, 1, 1]), "conv5")
    x = g.dropout(g.pool(x, "conv5"), "conv5")
    x = g.dropout(g.relu(g.full(x, "fc6"), "fc6"), "fc6")
    x = g.relu(g.full(x, "fc7"), "fc7")
    g.full(x, "fc8")


def torchvision(g):
    x = g.conv("views", "conv1", 4, [2, 2, 2, 2])
    x = g.pool(g.relu(x, "conv1"), "conv1")
    x = g.conv(x, "conv2", 1, [2, 2, 2, 2])
    x = g.pool(g.relu(x, "conv2"), "conv2")
    x = g.relu(g.conv(x, "conv3", 1, [1, 1, 1, 1]), "conv3")
    x = g.relu(g.conv(x, "conv4", 1, [1, 1, 1, 1]), "conv4")
    x = g.relu(g.conv(x, "conv5", 1, [1, 1, 1, 1]), "conv5")
    x = g.dropout(g.pool(x, "conv5"), "conv5")
    x = g.dropout(g.relu(g.full(x, "fc6"), "fc6"), "fc6")
    x = g.relu(g.full(x, "fc7"), "fc7")
    g.full(x, "fc8")


def run(model, feed, names):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feed), strict=True))


def value(name, shape=None):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def their_activations(build, weights, views):
    graph, feed = Graph(), {"views": np.moveaxis(views, -1, 1), **weights}
    build(graph)
    names = [output for node in graph.nodes for output in node.output]
    inputs = [value(name, array.shape) for name, array in feed.items()]
    outputs = [value(name) for name in names]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "network", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    ours = [name for name in names if "column " not in name and not name.endswith(("/flat", "/half"))]
    return run(model, feed, ours)


@pytest.mark.parametrize("build", [paper, single_tower, torchvision], ids=lambda build: build.__name__)
def test_every_layer_equals_onnx_runtime(build):
    name = build.__name__
    weights, views = draw_weights(NETWORKS[name][0]), draw_views(name)
    assert_close(our_activations(name, weights, views), their_activations(build, weights, views))


BVLC = {  # our activation: bvlc_alexnet's tensor
    "conv1": "r0", "conv1/activation": "r1", "conv1/lrn": "r2", "conv1/pool": "r3",
    "conv2": "r4", "conv2/activation": "r5", "conv2/lrn": "r6", "conv2/pool": "r7",
    "conv3": "r8", "conv3/activation": "r9",
    "conv4": "r10", "conv4/activation": "r11",
    "conv5": "r12", "conv5/activation": "r13", "conv5/pool": "r14",
    "fc6": "r16", "fc6/activation": "r17", "fc6/dropout": "r18",
    "fc7": "r20", "fc7/activation": "r21", "fc7/dropout": "r22",
    "fc8": "r24",
}  # fmt: skip


def bvlc_alexnet(feed):
    """The onnx package's graph; only what fills its weights with a constant is taken out, and its sizes.

    It comes for one image of 224x224, which gives 54x54 maps, and 6x6 by a last pooling padded to round up.
    Caffe trains it on 227x227: 55x55 maps, and that padding is never reached.
    """
    folder = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light")
    model = onnx.load(os.path.join(folder, "light_bvlc_alexnet.onnx"))
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        graph.node.remove(node)
    del graph.input[:], graph.output[:], graph.initializer[:]
    graph.input.extend(value(name, array.shape) for name, array in feed.items())
    graph.output.extend(value(name) for name in BVLC.values())
    # What fc6 sees of an image.
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 9216]), "OC2_DUMMY_1"))
    return model


def test_caffe_equals_bvlc_alexnet_in_onnx_runtime():
    weights, views = draw_weights(NETWORKS["caffe"][0]), draw_views("caffe")
    feed = {"data_0": np.moveaxis(views, -1, 1)}
    for key, array in weights.items():
        feed[key.replace(".weight", "_w_0").replace(".bias", "_b_0")] = array
    theirs = run(bvlc_alexnet(feed), feed, list(BVLC.values()))
    want = {ours: theirs[tensor] for ours, tensor in BVLC.items()}
    assert_close(our_activations("caffe", weights, views), want)
