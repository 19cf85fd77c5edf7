"""The paper's two-column network in ONNX Runtime, forward only, for experiments/benchmark.py."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SHAPES = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 256 * 6 * 6),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}


def random_weights() -> dict[str, np.ndarray]:
    """Draw weights from N(0, 0.01^2), with biases of 0.1, in PyTorch's names and layout."""
    draw, weights = np.random.default_rng(0), {}
    for name, shape in SHAPES.items():
        weights[f"{name}.weight"] = 0.01 * draw.standard_normal(shape, np.float32)
        weights[f"{name}.bias"] = np.full(shape[0], 0.1, np.float32)
    return weights


def network(weights: dict[str, np.ndarray]):
    """Return the model: views minus the mean, float [batch, 3, 224, 224], -> log_softmax [batch, 1000]."""
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    constants.append(numpy_helper.from_array(np.float32(0.5), "half"))
    nodes = []

    def add(op, *inputs, **attributes):
        nodes.append(helper.make_node(op, inputs, [f"{op} {len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def conv(x, name, pads, stride=1, group=1):
        """Convolve; `pads` are top, left, bottom, right."""
        parts = (f"{name}.weight", f"{name}.bias")
        return add("Relu", add("Conv", x, *parts, strides=[stride] * 2, pads=pads, group=group))

    def response_norm(x, maps, side):
        """Normalise each column (section 3.3) as a separate image. ONNX divides alpha by the size."""
        for features in (maps // 2, maps):
            shape = np.array([-1, features, side, side])
            constants.append(numpy_helper.from_array(shape, f"shape {len(constants)}"))
            x = add("Reshape", x, constants[-1].name)
            if features < maps:
                x = add("LRN", x, size=5, alpha=5e-4, beta=0.75, bias=2.0)
        return x

    def pool(x):
        return add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])

    def full(x, name):
        return add("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1)

    x = conv("views", "conv1", [0, 0, 3, 3], stride=4)
    x = pool(response_norm(x, 96, 55))
    x = conv(x, "conv2", [2, 2, 2, 2], group=2)
    x = pool(response_norm(x, 256, 27))
    x = conv(x, "conv3", [1, 1, 1, 1])
    x = conv(x, "conv4", [1, 1, 1, 1], group=2)
    x = pool(conv(x, "conv5", [1, 1, 1, 1], group=2))
    x = add("Flatten", x)
    for name in ("fc6", "fc7"):
        x = add("Mul", add("Relu", full(x, name)), "half")  # section 4.2, at test
    nodes.append(helper.make_node("LogSoftmax", [full(x, "fc8")], ["log_softmax"], axis=1))
    views = helper.make_tensor_value_info("views", TensorProto.FLOAT, ["batch", 3, 224, 224])
    output = helper.make_tensor_value_info("log_softmax", TensorProto.FLOAT, ["batch", 1000])
    graph = helper.make_graph(nodes, "alexnet", [views], [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def session(weights: dict[str, np.ndarray], threads: int, platform: str = "cpu"):
    """Return an inference session of the network; `platform` is JAX's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    provider = "CUDAExecutionProvider" if platform == "gpu" else "CPUExecutionProvider"
    return onnxruntime.InferenceSession(network(weights).SerializeToString(), options, providers=[provider])


def start(batch: int, threads: int, platform: str):
    """Return (a step, which is a forward pass, facts); `platform` is JAX's, cpu or gpu."""
    running = session(random_weights(), threads, platform)
    views = np.random.default_rng(1).standard_normal((batch, 3, 224, 224), np.float32)
    facts = {"threads": threads, "device": running.get_providers()[0]}
    return lambda: running.run(None, {"views": views}), facts
