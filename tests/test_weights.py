"""Weights in and out: against PyTorch, files made here byte by byte, damaged and hostile files."""

import gzip
import io
import json
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import programs

from alexnet_jax import augment, evaluate, main, optimizer, train, weights
from alexnet_jax.datasets import fashion_mnist, images, statistics
from alexnet_jax.pretrained import conversion, formats
from alexnet_jax.pretrained.normalization import published_statistics
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.runtime.mesh import make_mesh
from alexnet_jax.step import abstract_state, init_state, make_activations
from alexnet_jax.table import layer_table
from alexnet_jax.workdirs import identity
from alexnet_jax.workdirs.checkpoint import Checkpoints
from alexnet_jax.workdirs.workdir import read_config, read_result
from configs import caffe, large_batch, no_communication, paper, quickstart, torchvision

ROOT = pathlib.Path(__file__).parent.parent


def shapes_of(config):
    return conversion.torch_shapes(layer_table(config))


def narrow(module, classes=10, **changes):
    config = module.get_config()
    config.model.width = 1 / 16
    config.model.num_classes = classes
    config.update_from_flattened_dict(changes)
    return config


def random_tensors(config, seed=0):
    """Random weights in PyTorch's layout whose outputs keep their scale from layer to layer."""
    draw = np.random.default_rng(seed)
    return {
        name: draw.standard_normal(shape, np.float32) * np.float32(np.prod(shape[1:] or (200,)) / 2) ** -0.5
        for name, shape in shapes_of(config).items()
    }


def assert_same_bits(one, other):
    """Two dictionaries of float32 arrays have the same names and bits."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype == np.float32, name
        bits = (np.ascontiguousarray(array).view(np.uint32) for array in (one[name], other[name]))
        np.testing.assert_array_equal(*bits, strict=True, err_msg=name)


def params_of(workdir):
    """(config, parameters) of a workdir, as evaluation opens them."""
    config = read_config(workdir)
    abstract = abstract_state(config, make_mesh(config), optimizer.make(config))
    with Checkpoints(workdir) as checkpoints:
        step, params = checkpoints.restore_params(abstract.params)
    assert step == 0
    return config, params


def exported(workdir, path):
    weights.export_weights(str(path), str(workdir))
    return safetensors.numpy.load_file(path)


# Layouts


def test_every_number_is_where_pytorch_has_it():
    config = narrow(paper)
    tensors = random_tensors(config)
    params = conversion.from_torch(layer_table(config), tensors)
    abstract = abstract_state(config, make_mesh(config), optimizer.make(config))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, abstract.params)
    for column, (row, place, inputs, output) in [(0, (1, 2, 3, 1)), (1, (0, 2, 1, 5))]:
        # conv2 has 8 maps a column, and sees 3 of conv1's 6.
        value = params["conv2"]["kernel"][column, row, place, inputs % 3, output]
        assert value == tensors["conv2.weight"][column * 8 + output, inputs % 3, row, place]
        # fc6 has 128 units a column, and sees all 16 maps of 6x6 of both.
        value = params["fc6"]["kernel"][column, (row * 6 + place) * 16 + 10 + inputs, output]
        assert value == tensors["fc6.weight"][column * 128 + output, (10 + inputs) * 36 + row * 6 + place]
        # fc8 is split over its inputs.
        value = params["fc8"]["kernel"][column, 100 + row, output]
        assert value == tensors["fc8.weight"][output, column * 128 + 100 + row]
        assert params["conv4"]["bias"][column, output] == tensors["conv4.bias"][column * 12 + output]
    np.testing.assert_array_equal(params["fc8"]["bias"], tensors["fc8.bias"])


@pytest.mark.parametrize(
    "config",
    [
        narrow(torchvision),
        narrow(caffe),
        narrow(no_communication),
        narrow(paper, **{"model.layers.fc6.enabled": False, "model.layers.fc7.enabled": False}),
        narrow(paper, **{"model.columns": 1}),
        quickstart.get_config(),
        narrow(large_batch),
    ],
    ids=["torchvision", "caffe", "no gather", "no hidden layer", "one column", "quickstart", "batch_norm"],
)
def test_layouts_are_the_reverse_of_each_other(config):
    tensors, table = random_tensors(config), layer_table(config)
    assert_same_bits(conversion.to_torch(table, conversion.from_torch(table, tensors)), tensors)
    trained = [tensor.size for name, tensor in tensors.items() if "running" not in name]
    assert sum(trained) == sum(s.parameters for s in layer_table(config))


def test_names_are_torchvisions_for_its_structure_only():
    assert list(shapes_of(torchvision.get_config()))[::15] == [
        "features.0.weight",
        "classifier.6.bias",
    ]
    assert shapes_of(torchvision.get_config())["classifier.1.weight"] == (
        4096,
        9216,
    )
    assert list(shapes_of(narrow(paper, **{"model.columns": 1})))[::15] == [
        "conv1.weight",
        "fc8.bias",
    ]


# Whole ways


def test_safetensors_in_and_out_keep_every_bit(tmp_path):
    config = narrow(torchvision, classes=1000)
    tensors = random_tensors(config)
    tensors["features.0.weight"].flat[:2] = -0.0, 1e-45
    safetensors.numpy.save_file(tensors, tmp_path / "in.safetensors")
    weights.import_weights("torchvision", str(tmp_path / "in.safetensors"), str(tmp_path / "run"), config)
    assert_same_bits(exported(tmp_path / "run", tmp_path / "out.safetensors"), tensors)
    stored = statistics.load(tmp_path / "run" / "statistics.npz")
    np.testing.assert_allclose(stored["channel_mean"], [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(stored["channel_std"], [58.395, 57.12, 57.375], rtol=1e-6)
    names = list(stored["label_names"])
    assert len(names) == 1000 and names == sorted(names) and names[207] == "n02099601 golden retriever"
    # Of ImageNet's colours as fb.resnet.torch (datasets/imagenet.lua) measured them, on a scale of 0 to 1.
    theirs = np.array([[0.4009, 0.7192, -0.5675], [-0.8140, -0.0045, -0.5808], [0.4203, -0.6948, -0.5836]])
    np.testing.assert_allclose(np.abs(theirs.T @ stored["eigenvectors"]), np.eye(3), atol=0.04)
    np.testing.assert_allclose(
        stored["standard_deviations"], 255 * np.sqrt([0.0045, 0.0188, 0.2175]), rtol=0.16
    )


def own_statistics():
    draw = np.random.default_rng(0)
    shapes = dict(zip(statistics.ARRAYS, [(28, 28, 1), (1,), (1,), (1, 1), (1, 1), (1,)], strict=True))
    arrays = {name: draw.uniform(1, 2, shape).astype(np.float32) for name, shape in shapes.items()}
    return arrays | {"label_names": np.array(fashion_mnist.LABELS)}


@pytest.mark.parametrize("normalized", [False, True])
def test_an_own_run_goes_out_and_in_again(tmp_path, normalized):
    config = quickstart.get_config()
    if normalized:
        config.model.layers.conv2.then = ("batch_norm", "activation", "pool")
    state = init_state(config, make_mesh(config), optimizer.make(config))
    weights._make_workdir(str(tmp_path / "own"), config, own_statistics(), identity.DRAWN, state.params)
    tensors = exported(tmp_path / "own", tmp_path / "own.safetensors")
    assert tensors["conv2.weight"].shape == (48, 12, 5, 5) and tensors["fc6.weight"].shape == (512, 192)
    norms = {name: tensor.shape for name, tensor in tensors.items() if "norm" in name}
    names = ("bias", "running_mean", "running_var", "weight") if normalized else ()
    assert norms == {f"conv2_norm.{name}": (48,) for name in names}

    weights.import_weights(None, str(tmp_path / "own.safetensors"), str(tmp_path / "again"))
    same_params = jax.tree.map(np.array_equal, params_of(tmp_path / "again")[1], state.params)
    assert all(jax.tree.leaves(same_params))
    for name in ("config.json", "statistics.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()
    with pytest.raises(InputError, match="exists already"):
        weights.export_weights(str(tmp_path / "own.safetensors"), str(tmp_path / "own"))


def test_exports_of_former_versions_are_read_as_before(tmp_path):
    config = quickstart.get_config()
    tensors, file = random_tensors(config), str(tmp_path / "old.safetensors")
    safetensors.numpy.save_file(tensors, file, {"format": "pt", "alexnet_jax.config": "quickstart"})
    arrays = own_statistics()
    statistics.save(tmp_path / "mean.npz", arrays)
    weights.import_weights("caffe", file, str(tmp_path / "run"), config, mean=str(tmp_path / "mean.npz"))
    assert_same_bits(exported(tmp_path / "run", tmp_path / "out.safetensors"), tensors)
    stored = statistics.load(tmp_path / "run" / "statistics.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array)
    # Weights of this network in Caffe's would run, and mean something else.
    with pytest.raises(InputError, match="belongs to the network 'quickstart'"):
        weights.import_weights("caffe", file, str(tmp_path / "caffe"))
    with pytest.raises(InputError, match="--from: missing"):
        weights.import_weights(None, file, str(tmp_path / "caffe"))


def own_run(workdir, **changes):
    """A workdir of a small two-column network, with random weights; return its configuration."""
    config = narrow(quickstart, **{"model.width": 0.25, "model.lrn.enabled": False, "seed": 3, **changes})
    params = conversion.from_torch(layer_table(config), random_tensors(config))
    weights._make_workdir(str(workdir), config, own_statistics(), identity.DRAWN, params)
    return config


def test_an_imported_export_evaluates_to_the_last_digit(data_dir, tmp_path):
    changes = {"data.dir": data_dir, "data.test_split": "test[:500]", "eval.views": 1, "model.columns": 1}
    own_run(tmp_path / "own", **changes)
    exported(tmp_path / "own", tmp_path / "own.safetensors")
    weights.main(["import", str(tmp_path / "own.safetensors"), f"--workdir={tmp_path / 'again'}"])
    for workdir in ("own", "again"):
        evaluate.evaluate(read_config(str(tmp_path / workdir)), str(tmp_path / workdir))
    own, again = (read_result(str(tmp_path / name)) for name in ("own", "again"))
    assert again.pop("run") != own.pop("run") and again == own
    stored = [identity.read(str(tmp_path / name)) for name in ("own", "again")]
    assert stored[1]["origin"] == {
        **stored[1]["origin"], "kind": "file", "run": stored[0]["run"], "step": 0,
    }  # fmt: skip


def test_flags_that_contradict_an_export_are_told_and_others_are_taken(tmp_path):
    own_run(tmp_path / "own")
    file = str(tmp_path / "own.safetensors")
    exported(tmp_path / "own", file)
    stored = own_statistics()
    statistics.save(tmp_path / "same.npz", stored)
    stored["covariance"] = stored["covariance"] + 1
    statistics.save(tmp_path / "other.npz", stored)
    (tmp_path / "labels").write_text("\n".join(fashion_mnist.LABELS))
    (tmp_path / "wrong").write_text("\n".join(fashion_mnist.LABELS).replace("Coat", "Boat"))
    (tmp_path / "mean").write_bytes(blob(np.ones((1, 28, 28)), old=True))
    quick = ["--config=configs/quickstart.py", "--config.model.width=0.25"]
    for flags, words in (
        (["--from=torchvision"], "--from=torchvision: .*leave it out for an export"),
        (["--config.seed=4"], "seed is 3 there, 4 here"),
        (["--config.model.columns=1"], "model.columns is 2 there, 1 here"),
        (quick, "model.lrn.enabled is False there, True here; seed is 3 there, 0 here; leave"),
        (["--config=configs/caffe.py"], "has another configuration: .*batch_size is 64 there, 256 here"),
        (["--config.num_epochs=0"], "num_epochs: expected"),
        (["--config.sed=1"], "sed: there is no such field"),
        (["--mean", str(tmp_path / "other.npz")], "covariance has the mean .* in .*own.safetensors, "),
        (["--mean", str(tmp_path / "mean")], "give the statistics.npz"),
        (["--labels", str(tmp_path / "wrong")], "line 5 is 'Coat' in .*own.safetensors, 'Boat' here"),
    ):
        with pytest.raises(InputError, match=words) as raised:
            weights.main(["import", file, f"--workdir={tmp_path / 'run'}", *flags])
        assert str(raised.value).isprintable() and not (tmp_path / "run").exists()
    free = ["--config.num_epochs=9", "--config.eval.views=1", "--config.data.dir=DIR", "--config.mesh.data=1"]
    agreeing = [*quick, "--config.model.lrn.enabled=False", "--config.seed=3", "--from=caffe", "--mean"]
    agreeing += [str(tmp_path / "same.npz"), "--labels", str(tmp_path / "labels")]
    for number, flags in enumerate((free, free + agreeing)):
        workdir = str(tmp_path / f"run{number}")
        weights.main(["import", file, f"--workdir={workdir}", *flags])
        config = read_config(workdir)
        assert (config.num_epochs, config.eval.views, config.data.dir, config.seed) == (9, 1, "DIR", 3)


@pytest.mark.program
def test_the_same_checkpoint_gives_the_same_file(tmp_path):
    own_run(tmp_path / "own")
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "alexnet_jax.weights", "export", f"--workdir={tmp_path / 'own'}"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([*command, tmp_path / f"{seed}.safetensors"], cwd=ROOT, env=environment, check=True)
    first, second = [(tmp_path / f"{seed}.safetensors").read_bytes() for seed in "12"]
    assert first == second
    weights.import_weights(None, str(tmp_path / "1.safetensors"), str(tmp_path / "again"))
    exported(tmp_path / "again", tmp_path / "again.safetensors")
    files = [safetensors.safe_open(tmp_path / f"{name}.safetensors", "numpy") for name in ("1", "again")]
    one, again = ({**json.loads(file.metadata()[weights.KEY]), "run": ""} for file in files)
    assert one == again  # its run is another, which starts where the first one ended
    for name in files[0].keys():  # noqa: SIM118 (it is no dict)
        np.testing.assert_array_equal(files[0].get_tensor(name), files[1].get_tensor(name))
    # The header's length is a multiple of 8, so that the numbers are aligned.
    assert int.from_bytes(first[:8], "little") % 8 == 0


def carrying(file, text):
    """`file`, whose metadata is `text` for the run that it carries."""
    formats.write(str(file), random_tensors(narrow(quickstart, **{"model.width": 0.25})), {weights.KEY: text})
    return str(file)


def test_hostile_metadata_is_told_and_leaves_nothing(tmp_path):
    own_run(tmp_path / "own")
    exported(tmp_path / "own", tmp_path / "own.safetensors")
    with safetensors.safe_open(tmp_path / "own.safetensors", "numpy") as file:
        good = json.loads(file.metadata()[weights.KEY])
    assert set(good) == {"config", "run", "step", "statistics"}
    weights.import_weights(
        None,
        carrying(tmp_path / "more", json.dumps(good | {"identity": {"a": 1}})),
        str(tmp_path / "more run"),
    )

    def changed(field, value):
        config = json.loads(json.dumps(good["config"]))
        *path, name = field.split(".")
        parent = config
        for key in path:
            parent = parent[key]
        parent[name] = value
        return json.dumps(good | {"config": config})

    for text, words in (
        ("", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps(good | {"statistics": "A"}), "damaged"),
        (json.dumps(good | {"statistics": ""}), "statistics cannot be read"),
        (json.dumps(good | {"step": "1"}), "of another type"),
        (json.dumps(good | {"config": []}), "of another type"),
        (json.dumps(good | {"config": {}}), "missing from the configuration"),
        (changed("model.layers", 1), "damaged"),
        (changed("model.layers.conv1.then", ["run"]), "its configuration cannot be used"),
        (changed("model.num_classes", 11), "fc8.weight is 10x128, but 11x128"),
        (changed("data.image_size", 1 << 40), "its statistics do not fit its network's images"),
        (changed("new_field", 1), "new_field: there is no such field"),
    ):
        with pytest.raises(InputError, match=words) as raised:
            weights.import_weights(None, carrying(tmp_path / "bad", text), str(tmp_path / "run"))
        assert str(raised.value).startswith(str(tmp_path / "bad")) and str(raised.value).isprintable()
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "count, labels, names",
    [
        (3, None, ["class 0", "class 1", "class 2"]),
        (3, "cat\nblack dog\nelk\n", ["cat", "black dog", "elk"]),
        (3, "\ufeffcat\r\nblack dog\r\nélk\r\n", ["cat", "black dog", "élk"]),
        (1000, "\n".join(map(str, range(1000))), [str(n) for n in range(1000)]),
    ],
)
def test_label_names(count, labels, names, tmp_path):
    if labels is not None:
        (tmp_path / "labels").write_bytes(labels.encode())
        labels = str(tmp_path / "labels")
    assert weights._label_names(narrow(paper, count), labels, {}) == names
    with pytest.raises(InputError, match="labels"):
        weights._label_names(narrow(paper, count + 1), str(tmp_path / "labels"), {})


@pytest.mark.parametrize(
    "config, known",
    [
        (paper.get_config("2012"), True),
        (paper.get_config("2010"), False),
        (narrow(paper, 1000, **{"data.name": "imagenet2012"}), True),
        (narrow(paper, 1000, **{"data.name": "folder"}), False),
        (narrow(torchvision, 1000, **{"data.name": "folder"}), True),
        (narrow(caffe, 1000, **{"data.name": "ilsvrc/2010"}), False),
    ],
    ids=["2012", "2010", "imagenet2012", "folder", "published", "published for 2010"],
)
def test_the_names_of_2012_are_those_of_networks_of_2012_only(config, known):
    names = weights._label_names(config, None, {})
    assert names == (IMAGENET if known else [f"class {number}" for number in range(1000)])


# Caffe's files, from the field numbers of its caffe.proto


def varint(number):
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array, old):
    data = field(5, array.astype("<f4").tobytes())
    if old:
        return b"".join(field(1 + n, d) for n, d in enumerate((1,) * (4 - array.ndim) + array.shape)) + data
    return data + field(6, data) + field(7, field(1, b"".join(map(varint, array.shape))))


def caffemodel(tensors, old=False, order=("norm", "pool", "norm", "pool", "pool")):
    """A net with some layers that have no weights, as Caffe saves it; `old` as it did before 2015."""
    kinds = {
        "norm": (15, b"LRN"),
        "pool": (17, b"Pooling"),
        "conv": (4, b"Convolution"),
        "data": (5, b"Data"),
    }
    net = field(1, b"AlexNet")
    after = dict(conv1=order[:2], conv2=order[2:4], conv5=order[4:])
    names = ["data", *dict.fromkeys(name.partition(".")[0] for name in tensors)]
    for name in [layer for first in names for layer in (first, *after.get(first, ()))]:
        kind = kinds.get(name.rstrip("0123456789"), (14, b"InnerProduct"))
        blobs = [tensors[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in tensors]
        if old:
            layer = (
                field(4, name.encode()) + field(5, kind[0]) + b"".join(field(6, blob(b, old)) for b in blobs)
            )
        else:
            layer = (
                field(1, name.encode()) + field(2, kind[1]) + b"".join(field(7, blob(b, old)) for b in blobs)
            )
        net += field(2 if old else 100, layer)
    return net


@pytest.mark.parametrize("old", [False, True])
def test_caffes_files_with_their_mean_image(old, tmp_path):
    config = narrow(caffe, **{"model.num_classes": 1000})
    tensors = random_tensors(config)
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(tensors, old))
    mean = np.random.default_rng(1).uniform(100, 130, (3, 256, 256)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(blob(mean, old=True))
    weights.import_weights(
        "caffe", str(tmp_path / "net.caffemodel"), str(tmp_path / "run"), config,
        mean=str(tmp_path / "mean.binaryproto"),
    )  # fmt: skip
    stored = statistics.load(tmp_path / "run" / "statistics.npz")
    assert list(stored["label_names"]) == IMAGENET
    red, green, blue = np.moveaxis(stored["mean_image"], -1, 0)
    np.testing.assert_array_equal(np.stack((blue, green, red)), mean)
    rgb = tensors | {"conv1.weight": tensors["conv1.weight"][:, ::-1]}
    assert_same_bits(exported(tmp_path / "run", tmp_path / "out.safetensors"), rgb)

    (tmp_path / "order").write_bytes(caffemodel(tensors, old, ("pool", "norm", "pool", "norm", "pool")))
    with pytest.raises(InputError, match="in another order"):  # CaffeNet
        weights.import_weights("caffe", str(tmp_path / "order"), str(tmp_path / "caffenet"), config)
    for array, shape in ((mean[:, :200], "3x200x256"), (mean[:1], "1x256x256"), (mean[0], "256x256")):
        for old_blob in (False, True):
            (tmp_path / "other").write_bytes(blob(array, old_blob))
            shape = shape if array.ndim == 3 or not old_blob else "1x256x256"
            with pytest.raises(InputError, match=f"mean image of {shape}, but .* are 3x256x256;"):
                published_statistics("caffe", config.data, str(tmp_path / "other"))


def test_caffes_mean_without_a_file_is_in_rgb():
    pixel = published_statistics("caffe", caffe.get_config().data, None)["mean_image"][7, 200]
    np.testing.assert_allclose(pixel, [122.67891434, 116.66876762, 104.00698793], rtol=1e-6)


# torch.save's files, as its documentation and PyTorch 2's own files have them


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def state_pickle(arrays, dtype="Float"):
    """The pickle of an OrderedDict of tensors, storage i being that of the i-th."""
    out = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01("
    for key, (name, array) in enumerate(arrays.items()):
        strides = np.array(array.strides) // 4
        storage = text("storage") + f"ctorch\n{dtype}Storage\n".encode() + text(str(key)) + text("cpu")
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += storage + number(array.size) + b"tQ" + number(0)
        out += b"(" + b"".join(map(number, array.shape)) + b"t(" + b"".join(map(number, strides)) + b"t"
        out += b"\x89h\x00)RtR"
    return out + b"u}" + text("_metadata") + b"h\x00)Rsb."


def torch_zip(path, arrays, pickled=None, compression=zipfile.ZIP_STORED, folder="archive"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", state_pickle(arrays) if pickled is None else pickled)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"{folder}/data/{key}", array.tobytes())


def test_torch_files_in_and_out_keep_every_bit(tmp_path):
    config = narrow(torchvision)
    tensors = random_tensors(config)
    torch_zip(tmp_path / "in.pth", tensors)
    weights.import_weights("torchvision", str(tmp_path / "in.pth"), str(tmp_path / "run"), config)
    assert_same_bits(exported(tmp_path / "run", tmp_path / "out.safetensors"), tensors)


def wrapped(name, how):
    """A name as DataParallel around the whole network or its features has it."""
    if how == "features.module.":
        return name.replace("features.", "features.module.")
    return how + name


@pytest.mark.parametrize("how", ["module.", "features.module."])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_names_of_data_parallel_are_read(how, kind, tmp_path):
    config = narrow(torchvision)
    tensors = random_tensors(config)
    theirs = {wrapped(name, how): tensor for name, tensor in tensors.items()}
    if kind == "pth":
        torch_zip(tmp_path / "in", theirs)
    else:
        safetensors.numpy.save_file(theirs, tmp_path / "in")
    weights.import_weights("torchvision", str(tmp_path / "in"), str(tmp_path / "run"), config)
    assert_same_bits(exported(tmp_path / "run", tmp_path / "out.safetensors"), tensors)
    both = tensors | {"module.features.0.bias": tensors["features.0.bias"]}
    torch_zip(tmp_path / "both", both)
    with pytest.raises(InputError, match="has 'module.features.0.bias', which torchvision lacks"):
        weights.import_weights("torchvision", str(tmp_path / "both"), str(tmp_path / "none"), config)


def checkpoint_pickle(key, arrays):
    """A training checkpoint: the state dict under `key`, and what else PyTorch's examples save with it."""
    inner = state_pickle(arrays)[2:-1]
    optimizer = b"}(" + text("state") + b"}" + text("param_groups") + b"]}(" + text("lr")
    optimizer += b"G" + struct.pack(">d", 0.1) + text("params") + b"](K\x00K\x01e" + text("maximize")
    optimizer += b"\x89uau"
    out = b"\x80\x02}(" + text("epoch") + b"K\x5a" + text("steps") + b"\x8a\x05\x00\x00\x00\x00\x01"
    return out + text("arch") + text("alexnet") + text(key) + inner + text("optimizer") + optimizer + b"u."


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_the_state_dict_of_a_checkpoint_is_read(key, tmp_path):
    config = narrow(torchvision)
    tensors = random_tensors(config)
    theirs = {wrapped(name, "features.module."): tensor for name, tensor in tensors.items()}
    torch_zip(tmp_path / "in.pth", theirs, checkpoint_pickle(key, theirs))
    weights.import_weights("torchvision", str(tmp_path / "in.pth"), str(tmp_path / "run"), config)
    assert_same_bits(exported(tmp_path / "run", tmp_path / "out.safetensors"), tensors)
    torch_zip(tmp_path / "other.pth", theirs, checkpoint_pickle("weights", theirs))
    with pytest.raises(InputError, match="'epoch' is not a tensor"):
        weights.import_weights("torchvision", str(tmp_path / "other.pth"), str(tmp_path / "none"), config)


# What cannot be read


def small_files(folder):
    """One small file of each kind, with the tensors in it."""
    tensors = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.ones(3, np.float32)}
    torch_zip(folder / "zip", tensors)
    (folder / "caffe").write_bytes(caffemodel(tensors))
    (folder / "old caffe").write_bytes(caffemodel(tensors, old=True))
    safetensors.numpy.save_file(tensors, folder / "safetensors")
    return tensors


def read_all(path):
    with formats.opened(str(path), caffe="caffe" in path.name) as opened:
        return {name: tensor.read() for name, tensor in opened.tensors.items() if tensor.dtype == "float32"}


@pytest.mark.parametrize("name", ["zip", "caffe", "old caffe", "safetensors"])
def test_damaged_files_are_read_or_told(name, tmp_path):
    tensors = small_files(tmp_path)
    path = tmp_path / name
    assert_same_bits(read_all(path), tensors)
    content, draw = path.read_bytes(), random.Random(name)
    damaged = [content[:length] for length in range(0, len(content), max(1, len(content) // 150))]
    for _ in range(400):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 4])):
            changed[draw.randrange(len(changed))] = draw.choice([0, 255, draw.randrange(256)])
        damaged.append(bytes(changed))
    told = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            read_all(path)
        except InputError as error:
            told += 1
            (line,) = str(error).splitlines()
            assert line.startswith(str(path)) and len(line) < 400 and line.isprintable()
    assert told > 100


class Attack:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def attacks(folder, proof):
    """Files (path, what the error says) that would do harm, or are of something else."""
    tensors = random_tensors(narrow(torchvision))
    for protocol in range(5):
        pickled = pickle.dumps({"features.0.weight": Attack(proof)}, protocol)
        torch_zip(folder / f"attack{protocol}.pth", {}, pickled)
        yield f"attack{protocol}.pth", "nothing was run"
    pickled = pickle.dumps(Attack(proof), 2)
    torch_zip(folder / "attack.pth", {}, pickled)
    yield "attack.pth", "'posix.system'.*nothing was run"
    (folder / "raw.pth").write_bytes(pickled)
    yield "raw.pth", "is not from torch.save"
    (folder / "before 1.6.pth").write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + pickled)
    yield "before 1.6.pth", "is not from torch.save since 1.6; save it again"
    for name in (b"builtins eval", b"os system", b"torch load", b"copyreg _reconstructor"):
        pickled = b"\x80\x02c" + name.replace(b" ", b"\n") + b"\n" + text("1") + b"\x85R."
        torch_zip(folder / name.decode(), {}, pickled)
        yield name.decode(), "nothing was run"
    # What the standard library's loader does even where it may import nothing but harmless names.
    torch_zip(folder / "memo.pth", {}, b"\x80\x02}r\xff\xff\xff\x7f.")
    yield "memo.pth", "instruction LONG_BINPUT"
    torch_zip(folder / "setattr.pth", {}, b"\x80\x02ccollections\nOrderedDict\nN}" + text("x") + b"Ns\x86b.")
    yield "setattr.pth", "damaged"
    nested = b"\x80\x02)" + b"2\x86" * 60 + b"."  # 2^60 empty tuples
    torch_zip(folder / "nested.pth", {}, nested)
    yield "nested.pth", "instruction DUP"
    nested = b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"0}h\x00Ns."
    torch_zip(folder / "hash.pth", {}, nested)
    yield "hash.pth", "instruction BINGET"
    torch_zip(folder / "deep.pth", {}, b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.")  # hashed, it ends Python
    yield "deep.pth", "nothing was run"
    # Attributes of a class, and of a tensor; given as a dictionary, and as slots.
    for part, state in enumerate((b"}" + text("shape") + b"Nsb", b"N}" + text("shape") + b"Ns\x86b")):
        pickled = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"."
        torch_zip(folder / f"class{part}.pth", {}, pickled)
        yield f"class{part}.pth", "damaged"
        torch_zip(
            folder / f"tensor{part}.pth", tensors, state_pickle(tensors).replace(b"RtR", b"RtR" + state, 1)
        )
        yield f"tensor{part}.pth", "a pickle changes a tensor"
    torch_zip(folder / "bomb.pth", tensors, compression=zipfile.ZIP_DEFLATED)
    yield "bomb.pth", "compressed"
    torch_zip(folder / "large.pth", {}, b"N" * (1 << 21))
    yield "large.pth", "too large"
    torch_zip(folder / "entry.pth", tensors)  # an entry's two sizes differ, and one of them is gigabytes
    content = bytearray((folder / "entry.pth").read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 20 : entry + 24] = struct.pack("<I", 1 << 30)
    (folder / "entry.pth").write_bytes(content)
    yield "entry.pth", "compressed or too large"
    torch_zip(folder / "path.pth", {}, folder="../../up")
    yield "path.pth", "has no features.0.weight"
    torch_zip(folder / "half.pth", tensors, state_pickle(tensors, "Half"))
    yield "half.pth", "is of type float16"
    torch_zip(folder / "checkpoint.pth", {}, b"\x80\x02}" + text("epoch") + b"K\x01s.")
    yield "checkpoint.pth", "'epoch' is not a tensor"
    strides = state_pickle(tensors).replace(number(363) + number(121), number(1 << 30) + number(1))
    torch_zip(folder / "strides.pth", tensors, strides)
    yield "strides.pth", "larger than its storage"
    torch_zip(folder / "other.pth", {"conv1.weight": tensors["features.0.weight"]})
    yield "other.pth", "has no features.0.weight"
    more = tensors | {"features.11.weight": tensors["features.0.weight"]}
    torch_zip(folder / "more.pth", more)
    yield "more.pth", "has 'features.11.weight', which torchvision lacks"
    torch_zip(folder / "shape.pth", tensors | {"features.3.weight": tensors["features.0.weight"]})
    yield "shape.pth", "features.3.weight is 4x3x11x11, but 12x4x5x5"
    nan = tensors | {"features.0.bias": np.full(4, np.nan, np.float32)}
    torch_zip(folder / "nan.pth", nan)
    yield "nan.pth", "features.0.bias has values that are not finite"
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b'{"a":1}')
    yield "a.safetensors", "damaged"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (folder / "b.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    yield "b.safetensors", "damaged"
    (folder / "empty").write_bytes(b"")
    yield "empty", "is not from"
    (folder / "folder").mkdir()
    yield "folder", "is not a file"
    yield "nowhere", "there is no such file"


def test_hostile_files_and_other_networks_are_told_and_leave_nothing(tmp_path):
    files, run = tmp_path / "files", tmp_path / "run"
    files.mkdir()
    for name, words in attacks(files, tmp_path / "proof"):
        with pytest.raises(InputError, match=words) as raised:
            weights.import_weights("torchvision", str(files / name), str(run), narrow(torchvision))
        assert str(raised.value).startswith(f"{files / name}: ") and str(raised.value).isprintable()
    assert {path.name for path in tmp_path.iterdir()} == {"files"}


@pytest.mark.parametrize(
    "content, words",
    [
        (field(100, b"\x0a\x7f"), "damaged"),
        (field(2, b"\x0a\x7f"), "damaged"),
        (
            field(100, field(1, b"conv1") + field(7, field(7, field(1, varint(1 << 62))))),
            "does not fit its shape",
        ),
        (
            field(100, field(1, b"conv1") + field(7, field(7, field(1, b"\x01" * 9000)))),
            "does not fit its shape",
        ),
        (field(100, field(1, b"conv1") + field(7, field(8, b"12345678"))), "float64"),
        (field(100, field(1, b"conv1") + field(2, 1 << 62)), "has no weights"),
        (2 * field(100, field(1, b"a") + field(7, blob(np.ones(3), False))), "two layers named 'a'"),
        (field(1, b"AlexNet"), "has no weights"),
        (b"\xff" * 30, "damaged"),
        (field(9, 1) * 200_000, "has no weights"),
        (field(100, b"") * 200_000, "more layers"),
        (field(100, field(7, b"") * 200_000), "more layers"),
    ],
)
def test_hostile_messages_of_caffe_are_told(content, words, tmp_path):
    (tmp_path / "net").write_bytes(content)
    with pytest.raises(InputError, match=words):
        weights.import_weights("caffe", str(tmp_path / "net"), str(tmp_path / "run"), narrow(caffe))
    assert not (tmp_path / "run").exists()


def tar_of(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("alexnet.pth"), io.BytesIO())
    return file.getvalue() + content


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


OTHERS = [
    (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file; give"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "pointer of Git LFS, .*git lfs pull",
    ),
    (b"<!DOCTYPE html>\n<html>", "is a web page"),
    (b"\n  <html lang=en>", "is a web page"),
    (b'# AlexNet\n\nname: "AlexNet"\nlayer {\n', "as text .*give the .caffemodel"),
    (b'layers { name: "conv1" }', "as text .*give the .caffemodel"),
    (b'net: "models/train_val.prototxt"\nbase_lr: 0.01\n', "as text .*give the .caffemodel"),
    (b"\n" * 4000 + b"nothing", "damaged|is not from"),
    (
        field(1, 450_000) + field(2, b"x/caffe_alexnet_train_iter_450000.caffemodel") + field(3, b""),
        "solverstate",
    ),
    (field(1, 450_000) + field(3, blob(np.ones(3), old=False)), "solverstate"),
    (blob(np.ones((3, 4, 4)), old=True), "binaryproto.*give it as --mean|is not from"),
    (tar_of(b""), "is a tar archive; unpack it"),
    (gzip.compress(b"weights", mtime=0), "is compressed; unpack it"),
    (npz(), "is a ZIP archive, but not from torch.save; give"),
    (b"PK\x05\x06" + bytes(18), "is a ZIP archive, but not from torch.save; give"),
]


@pytest.mark.parametrize("content, words", OTHERS)
@pytest.mark.parametrize("source", ["caffe", "torchvision"])
def test_files_that_are_no_weights_are_told_what_they_are(source, content, words, tmp_path):
    (tmp_path / "in").write_bytes(content)
    config = narrow(caffe if source == "caffe" else torchvision)
    started = time.monotonic()
    with pytest.raises(InputError, match=words) as raised:
        weights.import_weights(source, str(tmp_path / "in"), str(tmp_path / "run"), config)
    assert str(raised.value).startswith(str(tmp_path / "in")) and str(raised.value).isprintable()
    assert time.monotonic() - started < 10 and not (tmp_path / "run").exists()


def test_a_mean_that_is_another_file_is_told(tmp_path):
    (tmp_path / "mean").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "mean.npz").write_bytes(npz())
    (tmp_path / "nan").write_bytes(blob(np.full((3, 256, 256), np.nan), old=True))
    data = caffe.get_config().data
    for name, words in (("mean", "Git LFS"), ("mean.npz", "has no statistics"), ("nan", "not finite")):
        with pytest.raises(InputError, match=words):
            published_statistics("caffe", data, str(tmp_path / name))
    with pytest.raises(InputError, match="a .binaryproto has only the mean, and data.channels is 1"):
        (tmp_path / "grey").write_bytes(blob(np.ones((1, 28, 28)), old=True))
        published_statistics("caffe", quickstart.get_config().data, str(tmp_path / "grey"))


@pytest.mark.program
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path):
    """No file may be larger than 200 kB here: Orbax's threads fail, each with a page of its own."""
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(random_tensors(narrow(caffe))))
    flags = f"--from=caffe --config=configs/caffe.py --config.model.width=0.0625 --workdir={tmp_path / 'run'}"
    command = (
        f"ulimit -f 200; {sys.executable} -m alexnet_jax.weights import {tmp_path}/net.caffemodel {flags}"
    )
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == (
        f"error: --workdir={tmp_path / 'run'}: cannot be written (File too large); give another\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["net.caffemodel"]


def test_a_workdir_is_new_and_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    config = narrow(torchvision)
    torch_zip(tmp_path / "in.pth", random_tensors(config))
    (tmp_path / "full" / ".hidden").mkdir(parents=True)
    for workdir, words in (
        ("full", "is not empty"),
        ("in.pth", "is a file"),
        ("in.pth/run", "cannot be written"),
    ):
        with pytest.raises(InputError, match=words):
            weights.import_weights("torchvision", str(tmp_path / "in.pth"), str(tmp_path / workdir), config)
    (tmp_path / "there").mkdir()

    def disk_is_full(*_):
        raise OSError("No space left on device")

    for place, name in ((statistics, "save"), (weights, "write_config"), (Checkpoints, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, disk_is_full)
            for workdir in ("there", "new"):
                with pytest.raises(InputError, match="cannot be written .No space left on device.; give"):
                    weights.import_weights(
                        "torchvision", str(tmp_path / "in.pth"), str(tmp_path / workdir), config
                    )
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "in.pth", "full", "full/.hidden", "there",
    }  # fmt: skip
    with pytest.raises(InputError, match="--from=caffe: torchvision is not such a network"):
        weights.import_weights("caffe", str(tmp_path / "in.pth"), str(tmp_path / "new"), config)


@pytest.mark.program
def test_the_command_line(tmp_path):
    torch_zip(tmp_path / "attack.pth", {}, pickle.dumps(Attack(tmp_path / "proof"), 2))
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(random_tensors(narrow(caffe))))
    new = f"--workdir={tmp_path / 'run'}"

    def run(*flags):
        return programs.finish("-m", "alexnet_jax.weights", *flags)

    cases = [
        (("import", "--from=torchvision", tmp_path / "attack.pth", new), "nothing was run"),
        (("import", "file", "another", "--from=caffe", new), "'another'"),
        (("export", "x.safetensors", new, "--lables=x"), "lables"),
    ]
    for flags, words in cases:
        code, out, err = run(*flags)
        (line,) = err.splitlines()
        assert code == 2 and line.startswith("error: ") and words in line and not out
    assert {path.name for path in tmp_path.iterdir()} == {"attack.pth", "net.caffemodel"}
    width = ("--config=configs/caffe.py", "--config.model.width=0.0625")
    code, out, err = run("import", "--from=caffe", tmp_path / "net.caffemodel", new, *width)
    assert code == 0 and "10 classes" in out and not err
    code, out, err = run("export", new, tmp_path / "net.safetensors")
    assert code == 0 and out.endswith("net.safetensors: conv1.weight to fc8.bias\n") and not err


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ("import", "--from=tensorflow", "file", "--workdir=w"),
            "--from: expected one of torchvision, caffe, got",
        ),
        (("import", "file", "--from=caffe"), "--workdir: missing"),
        (("import", "--from=caffe", "--workdir=w"), "FILE: missing"),
        (("move", "file", "--workdir=w"), "COMMAND: expected one of import, export, got 'move'"),
        (("--workdir=w",), "COMMAND, FILE: missing"),
        (("export", "x.pth", "--workdir=w"), "not the name of a .safetensors file"),
        (("export", "x.safetensors", "--workdir=w"), "has no config.json"),
        (("export", "x.safetensors", "--workdir=w", "--mean=x"), "--mean: is not for export"),
        (("export", "x.safetensors", "--workdir=w", "--config.seed=1"), "--config.seed: is not for export"),
        (("import", "file", "--workdir=w"), "file: there is no such file"),
    ],
)
def test_bad_arguments_are_named(flags, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        weights.main(list(flags))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_flags_that_a_file_without_a_configuration_needs_are_named(tmp_path):
    small_files(tmp_path)
    for flags, words in (
        ((), "--from: missing; give one of torchvision, caffe"),
        (("--from=caffe", "--config.seed=1"), "--config.seed: needs --config="),
    ):
        with pytest.raises(InputError, match=words):
            weights.main(["import", str(tmp_path / "safetensors"), f"--workdir={tmp_path / 'w'}", *flags])


# Labels


IMAGENET = [
    line
    for line in (ROOT / "alexnet_jax/datasets/imagenet_classes.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.program
def test_training_on_and_validation_take_the_labels_of_imported_weights(tmp_path):
    """The folder's two classes are not the network's first two."""
    config = narrow(torchvision, **{"model.num_classes": 1000})
    config.data.update(name="folder", dir=str(tmp_path), store="jpeg", val_split="val", test_split="val")
    config.update(num_epochs=1, batch_size=2)
    config.eval.update(views=1, batch_size=2)
    for split in ("train", "val"):
        for wnid in ("n02099601", "n02102040"):
            (tmp_path / split / wnid).mkdir(parents=True)
            save_png(tmp_path / split / wnid / "x.png", np.full((256, 256, 3), 99, np.uint8))
    tensors = random_tensors(config)
    tensors["classifier.6.weight"] *= 0
    tensors["classifier.6.bias"] = np.full(1000, -9, np.float32)
    tensors["classifier.6.bias"][[207, 217]] = 9  # sure that it is one of the two
    safetensors.numpy.save_file(tensors, tmp_path / "in.safetensors")
    weights.import_weights("torchvision", str(tmp_path / "in.safetensors"), str(tmp_path / "run"), config)
    train.train(config, str(tmp_path / "run"))
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["train_loss"] < 1 and row["val_loss"] < 1
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["data"] == "folder" and result["loss"] == pytest.approx(row["val_loss"])


# Against PyTorch


def photographs(count):
    """Real photographs, uint8 [count, 256, 256, 3]: of Fashion-MNIST, enlarged, in colours of their own."""
    grey = fashion_mnist.read_idx(fashion_mnist.FILES / "t10k-images-idx3-ubyte.gz", (10_000, 28, 28))[:count]
    tint = np.random.default_rng(0).uniform(0.3, 1, (count, 1, 1, 3))
    return np.stack(
        [images.fit((g[..., None] * t).astype(np.uint8), 256, 3) for g, t in zip(grey, tint, strict=True)]
    )


def torch_network(config):
    """(model, tensors): the network of `config` in torch.nn alone, in PyTorch's way, with random weights."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    wide = {name: value for name, value in shapes_of(config).items() if name.endswith("weight")}
    size = {name.removesuffix(".weight"): shape for name, shape in wide.items()}

    def conv(name, *stride_padding, groups=1):
        out, inputs, side, _ = size[name]
        return nn.Conv2d(inputs * groups, out, side, *stride_padding, groups=groups)

    def dense(name):
        return nn.Linear(*reversed(size[name]))

    if config.name == "torchvision":  # torchvision/models/alexnet.py
        features = nn.Sequential(
            conv("features.0", 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            conv("features.3", 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            conv("features.6", 1, 1), nn.ReLU(), conv("features.8", 1, 1), nn.ReLU(),
            conv("features.10", 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        classifier = nn.Sequential(
            nn.Dropout(), dense("classifier.1"), nn.ReLU(), nn.Dropout(), dense("classifier.4"), nn.ReLU(),
            dense("classifier.6"),
        )  # fmt: skip
        parts = dict(
            features=features, avgpool=nn.AdaptiveAvgPool2d(6), flat=nn.Flatten(), classifier=classifier
        )
    else:  # models/bvlc_alexnet/train_val.prototxt; nn.LocalResponseNorm divides alpha by the size as it does
        parts = dict(
            conv1=conv("conv1", 4), relu1=nn.ReLU(), norm1=nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0),
            pool1=nn.MaxPool2d(3, 2), conv2=conv("conv2", 1, 2, groups=2), relu2=nn.ReLU(),
            norm2=nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), pool2=nn.MaxPool2d(3, 2),
            conv3=conv("conv3", 1, 1), relu3=nn.ReLU(), conv4=conv("conv4", 1, 1, groups=2), relu4=nn.ReLU(),
            conv5=conv("conv5", 1, 1, groups=2), relu5=nn.ReLU(), pool5=nn.MaxPool2d(3, 2), flat=nn.Flatten(),
            fc6=dense("fc6"), relu6=nn.ReLU(), drop6=nn.Dropout(), fc7=dense("fc7"), relu7=nn.ReLU(),
            drop7=nn.Dropout(), fc8=dense("fc8"),
        )  # fmt: skip
    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part)
    tensors = random_tensors(config)
    if config.name == "caffe":  # its inputs are on the scale of 0 to 255
        tensors["fc8.weight"] /= 60
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    return network.eval(), tensors


def torch_logits(network, pixels, config):
    """The network's outputs for the central crop of pictures, normalised as its makers document."""
    import torch

    first = (256 - config.data.crop_size) // 2
    x = pixels[:, first:, first:][:, : config.data.crop_size, : config.data.crop_size].transpose(0, 3, 1, 2)
    x = torch.from_numpy(x.astype(np.float32))
    if config.name == "torchvision":
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (x / 255 - mean[:, None, None]) / std[:, None, None]
    else:
        x = x - torch.tensor([122.67891434, 116.66876762, 104.00698793])[:, None, None]
    with torch.no_grad():
        return network(x).numpy()


@pytest.mark.parametrize(
    "config",
    [torchvision.get_config(), narrow(torchvision, 30), narrow(caffe, 30)],
    ids=["torchvision", "narrow", "two columns, narrow"],
)
def test_imported_weights_give_torchs_outputs_and_errors(config, tmp_path):
    network, tensors = torch_network(config)
    import torch

    torch.save(network.state_dict(), tmp_path / "in.pth")
    source = "torchvision" if config.name == "torchvision" else "caffe"
    workdir = tmp_path / "run"
    weights.import_weights(source, str(tmp_path / "in.pth"), str(workdir), config)
    assert_same_bits(exported(workdir, tmp_path / "out.safetensors"), tensors)

    pixels = photographs(12)
    theirs = torch_logits(network, pixels, config)
    theirs_ranked = np.argsort(-theirs, axis=1)
    # Four labels that are the first guess, four among the first five, four behind.
    labels = [int(ranked[(0, 3, 17)[n % 3]]) for n, ranked in enumerate(theirs_ranked)]
    for n, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        for split in ("train", "val"):
            wnid = IMAGENET[label].split()[0] if config.model.num_classes == 1000 else f"{label:02}"
            folder = tmp_path / "pictures" / split / wnid
            folder.mkdir(parents=True, exist_ok=True)
            save_png(folder / f"{n:02}.png", picture)
    if config.model.num_classes != 1000:
        for label in range(config.model.num_classes):  # labels are positions here
            folder = tmp_path / "pictures" / "train" / f"{label:02}"
            folder.mkdir(parents=True, exist_ok=True)
            save_png(folder / "any.png", pixels[0])

    overrides = {
        "data.name": "folder", "data.dir": str(tmp_path / "pictures"), "data.val_split": "val",
        "data.test_split": "val", "eval.views": 1, "eval.batch_size": 12,
    }  # fmt: skip
    evaluated = main._config_of_workdir(type(config)(config), overrides, str(workdir))
    evaluate.evaluate(evaluated, str(workdir))
    result = json.loads((workdir / "eval.json").read_text())
    assert (result["top1_error"], result["top5_error"]) == (8 / 12, 4 / 12)

    stored, params = params_of(workdir)
    mesh = make_mesh(stored)
    views = jax.jit(
        lambda pixels: augment.test_view(
            pixels, jax.numpy.array(augment.test_views(stored, 1)[0]), arrays, stored
        )
    )
    arrays = evaluate.on_devices(statistics.load(workdir / "statistics.npz"), mesh)
    ours = np.asarray(make_activations(stored, mesh)(params, views(pixels))[0])
    assert theirs.std() > 0.3
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def halving_lines():
    """The two lines of docs/weights.md that halve the outputs of fc6 and fc7 for PyTorch."""
    lines = (ROOT / "docs" / "weights.md").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith('    for layer in ("fc7", "fc8")'))
    return textwrap.dedent("\n".join(lines[first : first + 2]))


def logits_of(config, params, views):
    return np.asarray(make_activations(config, make_mesh(config))(params, views)[0])


def test_halved_weights_are_the_papers_rule_for_dropout(tmp_path):
    config = narrow(paper, 30)
    config.mesh.update(data=1, column=1)
    tensors, views = random_tensors(config), np.random.default_rng(1).uniform(-9, 9, (3, 224, 224, 3))
    ours = logits_of(config, conversion.from_torch(layer_table(config), tensors), views.astype(np.float32))
    exec(halving_lines(), {"tensors": tensors})
    config.model.dropout_scale = "train"  # as PyTorch has it
    theirs = logits_of(config, conversion.from_torch(layer_table(config), tensors), views.astype(np.float32))
    assert ours.std() > 0.1
    np.testing.assert_array_equal(ours, theirs)


def test_an_export_loads_into_pytorch_and_gives_our_logits(tmp_path):
    """The paper's network in torch.nn, with dropout of the usual kind."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    nn = torch.nn

    class ColumnNorm(nn.Module):
        def forward(self, x):
            norm = nn.functional.local_response_norm  # divides alpha by the size
            return torch.cat([norm(column, 5, 5e-4, 0.75, 2.0) for column in x.chunk(2, dim=1)], dim=1)

    parts = dict(
        pad=nn.ZeroPad2d((0, 3, 0, 3)), conv1=nn.Conv2d(3, 6, 11, 4), relu1=nn.ReLU(), norm1=ColumnNorm(),
        pool1=nn.MaxPool2d(3, 2), conv2=nn.Conv2d(6, 16, 5, 1, 2, groups=2), relu2=nn.ReLU(),
        norm2=ColumnNorm(), pool2=nn.MaxPool2d(3, 2), conv3=nn.Conv2d(16, 24, 3, 1, 1), relu3=nn.ReLU(),
        conv4=nn.Conv2d(24, 24, 3, 1, 1, groups=2), relu4=nn.ReLU(),
        conv5=nn.Conv2d(24, 16, 3, 1, 1, groups=2), relu5=nn.ReLU(), pool5=nn.MaxPool2d(3, 2),
        flat=nn.Flatten(), fc6=nn.Linear(576, 256), relu6=nn.ReLU(), drop6=nn.Dropout(),
        fc7=nn.Linear(256, 256), relu7=nn.ReLU(), drop7=nn.Dropout(), fc8=nn.Linear(256, 30),
    )  # fmt: skip
    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part)

    config = narrow(paper, 30)
    params = conversion.from_torch(layer_table(config), random_tensors(config))
    stored = published_statistics("caffe", config.data, None)
    weights._make_workdir(str(tmp_path / "own"), config, stored, identity.DRAWN, params)
    exported(tmp_path / "own", tmp_path / "own.safetensors")
    views = np.random.default_rng(1).uniform(-9, 9, (3, 224, 224, 3)).astype(np.float32)
    ours = logits_of(*params_of(tmp_path / "own"), views)
    tensors = load_file(tmp_path / "own.safetensors")
    for halve, same_logits in (("", False), (halving_lines(), True)):
        exec(halve, {"tensors": tensors})
        network.eval().load_state_dict(tensors)
        with torch.no_grad():
            theirs = network(torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2)))).numpy()
        assert theirs.std() > 0.1
        assert np.allclose(ours, theirs, atol=1e-5, rtol=0) == same_logits


def save_png(path, pixels):
    from PIL import Image

    Image.fromarray(pixels).save(path)
