"""alexnet_jax/config.py: what a configuration may hold, and to which one a workdir belongs."""

import json
import pathlib
import sys

import ml_collections
import pytest

from alexnet_jax import config as configuration
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.workdirs.workdir import read_config, write_config
from configs import paper, quickstart


def test_every_configuration_is_accepted():
    for config in (paper.get_config(), paper.get_config("2010"), quickstart.get_config()):
        configuration.check(config)


def test_a_configuration_is_loaded_from_any_folder(tmp_path, monkeypatch):
    root = pathlib.Path(__file__).parent.parent
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", [p for p in sys.path if pathlib.Path(p).resolve() not in (root, tmp_path)]
    )
    for name in ("configs", "configs.paper", "configs.quickstart"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    sys.path.append("elsewhere")
    path = list(sys.path)
    assert configuration.load(f"{root}/configs/quickstart.py").name == "quickstart"
    assert sys.path == path
    sys.path[:] = path = [str(root), *path]
    configuration.load(f"{root}/configs/quickstart.py")
    assert sys.path == path


def test_a_field_with_a_line_break_in_its_name_is_one_line():
    config = paper.get_config()
    for name in ("\ffeatures", "a\x85b", "a\u2028b"):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.model.layers.fc7[name] = 1
        with pytest.raises(InputError) as error:
            configuration.check(changed)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "field, value",
    [
        ("seed", -1),
        ("num_epochs", 0),
        ("batch_size", 0),
        ("model.columns", 3),
        ("model.columns", True),
        ("model.width", 0.0),
        ("model.width", float("nan")),
        ("model.width", float("inf")),
        ("model.activation", "gelu"),
        ("model.dropout_rate", 1.5),
        ("model.dropout_rate", 1.0),
        ("model.dtype", "float16"),
        ("model.lrn.size", 4),
        ("model.lrn.k", 0.0),
        ("model.lrn.enabled", 1),
        ("model.pool.stride", 0),
        ("model.layers.conv1.padding", (3,)),
        ("model.layers.conv1.padding", (-1, 0)),
        ("model.layers.conv1.then", ("relu",)),
        ("model.layers.fc6.features", 0),
        ("data.name", ""),
        ("data.channels", 4),
        ("data.store", "png"),
        ("data.crop_size", 257),
        ("data.normalization", "none"),
        ("augment.pca_std", -0.1),
        ("optimizer.learning_rate", -0.01),
        ("optimizer.momentum", 1.0),
        ("optimizer.plateau.patience", 0),
        ("optimizer.name", "adam"),
        ("optimizer.schedule", "cosine"),
        ("optimizer.warmup_epochs", -1.0),
        ("optimizer.trust_coefficient", 0.0),
        ("model.batch_norm.momentum", 1.0),
        ("model.batch_norm.epsilon", 0.0),
        ("micro_batches", 0),
        ("mesh.column", 3),
        ("mesh.data", 0),
        ("mesh.watchdog_minutes", -1.0),
        ("checkpoint.keep", 0),
        ("eval.views", 5),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_given(field, value):
    config = paper.get_config()
    parent, _, name = field.rpartition(".")
    target = config
    for part in parent.split(".") if parent else ():
        target = target[part]
    with target.ignore_type():
        target[name] = value
    with pytest.raises(InputError) as raised:
        configuration.check(config)
    message = str(raised.value)
    assert message.startswith(f"{field}: ") and str(value).strip("()") in message and "\n" not in message


@pytest.mark.parametrize(
    "field, text, value",
    [
        ("model.width", "2", 2.0),
        ("model.lrn.alpha", "1e-3", 1e-3),
        ("batch_size", "64", 64),
        ("eval.step", "-1", -1),
        ("model.lrn.enabled", "false", False),
        ("model.lrn.enabled", "FALSE", False),
        ("augment.crop", "0", False),
        ("model.lrn.across_columns", "True", True),
        ("model.lrn.across_columns", "1", True),
        ("data.name", "folder", "folder"),
        ("data.dir", "", ""),
        ("data.train_split", "train[:10%]", "train[:10%]"),
        ("data.dir", "'quoted' = 1", "'quoted' = 1"),
        ("optimizer.drop_epochs", "(30, 60)", (30, 60)),
        ("optimizer.drop_epochs", "30,60", (30, 60)),
        ("optimizer.drop_epochs", "[30]", (30,)),
        ("optimizer.drop_epochs", "30", (30,)),
        ("optimizer.drop_epochs", "()", ()),
        ("init_layers", "conv1", ("conv1",)),
        ("model.layers.conv1.padding", "(1, 2)", (1, 2)),
        ("model.layers.fc6.then", "('activation',)", ("activation",)),
        ("model.layers.conv2.bias", "-1", -1.0),
        ("model.width", 2, 2.0),  # a value, as a sweep gives it
        ("batch_size", 64, 64),
    ],
)
def test_an_override_has_the_type_of_its_field(field, text, value):
    config = configuration.load("configs/paper.py", {field: text})
    got = dict(configuration.flatten(config))[field]
    assert got == value and type(got) is type(value)
    assert configuration.typed({field: text}) == {field: value}


@pytest.mark.parametrize(
    "field, text",
    [
        ("batch_size", "64.0"),
        ("batch_size", ""),
        ("batch_size", "1e3"),
        ("batch_size", True),
        ("model.width", "wide"),
        ("model.width", "nan"),
        ("model.width", None),
        ("model.lrn.enabled", "maybe"),
        ("model.lrn.enabled", "2"),
        ("model.lrn.enabled", 1),
        ("data.name", ""),
        ("data.dir", 3),
        ("optimizer.drop_epochs", "(30,"),
        ("optimizer.drop_epochs", "x"),
        ("optimizer.drop_epochs", "(60, 30)"),
        ("optimizer.drop_epochs", "(True,)"),
        ("init_layers", "(1,)"),
        ("model.layers.conv1.padding", "3"),
        ("model.layers.conv1.then", "lambda: 0"),
        ("model.layers.conv1.then", "({},)"),
        ("model.layers.fc8.bias", "inf"),
    ],
)
def test_an_override_that_does_not_work_is_named(field, text):
    with pytest.raises(InputError, match=f"^{field}: expected .*, got "):
        configuration.load("configs/paper.py", {field: text})


@pytest.mark.parametrize(
    "field, words",
    [
        ("model.widht", "there is no such field; did you mean model.width?"),
        ("model.layers.conv9.kernel", "there is no such field in configs/paper.py"),
        ("model.layers.conv6.kernl", "did you mean model.layers.conv6.kernel?"),
        ("model.layers.fc8.features", "there is no such field"),
        ("model.layers.fc6.kernel", "there is no such field"),
        ("model.layers.pool1.size", "there is no such field"),
        ("model.layers", "there is no such field"),
        ("FIELD", "there is no such field"),
    ],
)
def test_an_override_of_no_field_is_told(field, words):
    with pytest.raises(InputError) as raised:
        configuration.load("configs/paper.py", {field: "1"})
    assert str(raised.value).startswith(f"{field}: ") and words in str(raised.value)


def test_layers_of_other_names_have_the_fields_of_their_kind():
    config = configuration.load("configs/finetune.py", {"model.layers.conv6.features": "128"})
    assert config.model.layers.conv6.features == 128
    with pytest.raises(InputError, match=r"^model.layers.conv6.stride: expected .* at least 1, got 0"):
        configuration.load("configs/finetune.py", {"model.layers.conv6.stride": "0"})
    config.model.layers.fc5 = config.model.layers.conv6
    with pytest.raises(InputError, match=r"^model.layers.fc5.(kernel|stride|padding): there is no such"):
        configuration.check(config)


def test_every_rule_is_of_a_field():
    fields = [field.replace("layers.*", "layers.conv1") for field in configuration._RULES]
    assert set(fields) <= dict(configuration.flatten(paper.get_config())).keys()


def test_an_unknown_field_is_told_with_the_nearest_one():
    config = paper.get_config()
    config.model.dropout = 0.5
    with pytest.raises(InputError, match=r"model.dropout: there is no such field.*model.dropout_rate"):
        configuration.check(config)


def test_a_missing_field_and_a_misnamed_layer_are_told():
    config = paper.get_config()
    del config.model.lrn.k
    with pytest.raises(InputError, match=r"model.lrn.k: missing"):
        configuration.check(config)
    config = paper.get_config()
    config.model.layers.pool1 = ml_collections.ConfigDict()
    with pytest.raises(InputError, match=r"model.layers.pool1"):
        configuration.check(config)


def test_config_json_gives_the_same_configuration_back(tmp_path):
    config = paper.get_config()
    write_config(config, tmp_path)
    loaded = read_config(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    configuration.check(loaded)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["lrn"]["alpha"] == 1e-4


def saved(tmp_path, **changes):
    config = quickstart.get_config()
    write_config(config, tmp_path)
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"num_epochs": 40},
        {"mesh.column": 1, "mesh.data": 2},
        {"micro_batches": 2},
        {"eval.views": 1},
        {"checkpoint.every_steps": 7},
        {"data.dir": "elsewhere", "data.manual_dir": "there", "data.store": "raw"},
    ],
)
def test_a_workdir_takes_what_does_not_decide_the_run(tmp_path, changes):
    configuration.check_same_run(saved(tmp_path, **changes), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"batch_size": 32},
        {"model.lrn.enabled": False},
        {"data.train_split": "train[:100]"},
        {"data.crop_size": 20},
        {"augment.flip": False},
        {"optimizer.plateau.patience": 9},
        {"num_epochs": 1},
    ],
)
def test_a_workdir_of_another_run_names_the_field(tmp_path, changes):
    config = saved(tmp_path, **changes)
    with pytest.raises(InputError) as raised:
        configuration.check_same_run(config, tmp_path)
    assert all(field in str(raised.value) for field in changes)


def test_a_damaged_config_json_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(InputError, match="config.json"):
        read_config(tmp_path)


def test_batch_normalisation_twice_after_a_layer_is_refused():
    config = paper.get_config()
    config.model.layers.conv1.then = ("batch_norm", "activation", "batch_norm")
    with pytest.raises(InputError, match=r"model.layers.conv1.then: .* with batch_norm at most once"):
        configuration.check(config)


def test_images_that_share_statistics_of_batch_normalisation_belong_to_a_run(tmp_path):
    config = quickstart.get_config()
    write_config(config, tmp_path)
    configuration.check_same_run(quickstart_with(micro_batches=2, **{"mesh.data": 2}), tmp_path)

    normalized = {"model.layers.conv1.then": ("batch_norm", "activation")}
    write_config(quickstart_with(**normalized), tmp_path)
    configuration.check_same_run(quickstart_with(**normalized, **{"mesh.data": 2}), tmp_path)
    in_parts = quickstart_with(**normalized, micro_batches=2)
    with pytest.raises(InputError, match="micro_batches is 1 there, 2 here"):
        configuration.check_same_run(in_parts, tmp_path)
    configuration.check_same_run(in_parts, tmp_path, data=False)

    normalized |= {"model.batch_norm.synchronized": False}
    with pytest.raises(InputError, match=r"^mesh.data: expected the number of devices .*, got -1; "):
        configuration.check(quickstart_with(**normalized))
    write_config(quickstart_with(**normalized, **{"mesh.data": 1}), tmp_path)
    with pytest.raises(InputError, match="mesh.data is 1 there, 2 here"):
        configuration.check_same_run(quickstart_with(**normalized, **{"mesh.data": 2}), tmp_path)
    configuration.of_run(str(tmp_path), {"mesh.data": "4"})


def quickstart_with(**fields):
    config = quickstart.get_config()
    configuration.override(config, fields, "quickstart")
    return config


def test_a_polynomial_schedule_has_no_drops_and_one_number_of_epochs(tmp_path):
    config = quickstart.get_config()
    config.optimizer.update(schedule="polynomial", drop_epochs=(3,))
    with pytest.raises(
        InputError, match=r"^optimizer.drop_epochs: expected \(\) with optimizer.schedule=poly"
    ):
        configuration.check(config)
    config.optimizer.drop_epochs = ()
    write_config(config, tmp_path)
    config.num_epochs += 1
    with pytest.raises(InputError, match=r"^num_epochs: 7, but .* was started with 6"):
        configuration.check_same_run(config, tmp_path)
    assert "num_epochs is 6 there, 7 here" in configuration.differences(config, read_config(tmp_path))


@pytest.mark.parametrize("drop_epochs", [(), (2, 4)])
def test_a_workdir_of_a_version_without_large_batches_is_of_the_same_run(tmp_path, drop_epochs):
    config = quickstart.get_config()
    config.optimizer.drop_epochs = drop_epochs
    former = config.copy_and_resolve_references()
    for name in ("name", "trust_coefficient", "schedule", "power", "warmup_epochs"):
        del former.optimizer[name]
    del former["micro_batches"], former.model["batch_norm"]
    write_config(former, str(tmp_path))
    configuration.check_same_run(config, tmp_path)
    assert configuration.of_run(str(tmp_path)).to_dict() == config.to_dict()


def test_a_workdir_of_a_version_without_a_field_opens_with_the_papers_value(tmp_path):
    config = quickstart.get_config()
    del config.mesh["watchdog_minutes"], config.mesh["deterministic"], config.mesh["fused"]
    del config.model["precision"]
    write_config(config, str(tmp_path))
    opened = configuration.of_run(str(tmp_path), {"mesh.fused": "True"})
    assert (opened.mesh.watchdog_minutes, opened.mesh.deterministic, opened.mesh.fused) == (30, True, True)
    assert opened.model.precision == "default"
    assert configuration.differences(quickstart.get_config(), config) == ""
    assert "precision" not in config.model
    assert configuration.of_run(str(tmp_path), {"mesh.watchdog_minutes": "5"}).mesh.watchdog_minutes == 5
    configuration.check_same_run(quickstart.get_config(), str(tmp_path))


def test_precision_belongs_to_a_run_and_the_choice_of_kernels_does_not(tmp_path):
    config = saved(tmp_path)
    config.mesh.fused = not config.mesh.fused
    config.mesh.deterministic = not config.mesh.deterministic
    configuration.check_same_run(config, tmp_path)
    config.model.precision = "highest"
    with pytest.raises(InputError, match="model.precision is 'default' there, 'highest' here"):
        configuration.check_same_run(config, tmp_path)
