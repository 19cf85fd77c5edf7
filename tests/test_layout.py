"""The rules of the layout, by the imports that are written in the files, wherever in a file they stand."""

import ast
import functools
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
OURS = ("alexnet_jax", "configs", "experiments", "tests")
ROOMS = tuple(f"alexnet_jax.{room}" for room in ("runtime", "datasets", "workdirs", "pretrained", "kernels"))
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in OURS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PROGRAM = [name for name in FILES if not name.startswith("tests")]


def within(module, packages):
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


@functools.cache
def imports(name):
    """The modules that a module imports; in `from package import module`, the module."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: write the whole name of what it imports"
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= named & FILES.keys() or {node.module}
    return found


def test_no_import_cycle():
    graph = {name: imports(name) & FILES.keys() for name in PROGRAM}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a cycle


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_from_a_room_up_to_the_top(room):
    names = [name for name in FILES if within(name, [room])]
    assert names
    for name in names:
        up = {used for used in imports(name) if within(used, OURS) and not within(used, ROOMS)}
        assert not up, f"{name} imports {up}"


@pytest.mark.parametrize(
    "package, users",
    [
        # The baseline of a benchmark is a program in TensorFlow.
        ("tensorflow", {"alexnet_jax.runtime.quiet_tensorflow", "experiments.benchmarks.inputs"}),
        ("clu", {"alexnet_jax.workdirs.metrics"}),
        ("orbax", {"alexnet_jax.workdirs.checkpoint"}),
    ],
)
def test_a_large_package_has_one_user(package, users):
    assert {name for name in PROGRAM if any(within(used, [package]) for used in imports(name))} == users


def test_no_utils():
    assert not [name for name in FILES if name.split(".")[-1] in {"util", "utils"}]


def test_no_test_imports_another():
    tests = {path.stem for path in FILES.values() if path.stem.startswith("test_")}
    for name in FILES:
        used = {module for module in imports(name) if tests & set(module.split("."))}
        assert not used, f"{name} imports {used}"


def test_no_flag_is_defined_at_import():
    for name in PROGRAM:
        for statement in ast.parse(FILES[name].read_text()).body:
            if not isinstance(statement, ast.FunctionDef):
                calls = [ast.unparse(node.func) for node in ast.walk(statement) if isinstance(node, ast.Call)]
                flags = [call for call in calls if "DEFINE_" in call or call.endswith("ArgumentParser")]
                assert not flags, f"{name} calls {flags} when it is imported"
