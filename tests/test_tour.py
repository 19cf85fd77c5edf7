"""docs/tour.ipynb: its cells run in order on a small run; its outputs are kept, and name no path."""

import contextlib
import json
import pathlib
import re
import shutil

import pytest

import alexnet_jax

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def code():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def texts(output):
    """Return the texts of an output, without its pictures."""
    parts = [output.get("text", [])] + [
        part for kind, part in output.get("data", {}).items() if kind != "image/png"
    ]
    return "".join("".join(part) for part in parts)


@contextlib.contextmanager
def figures():
    """Yield pyplot on a backend without windows."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    try:
        yield plt
    finally:
        plt.close("all")


def test_its_cells_run_in_order(code, workdir, tmp_path, monkeypatch, capsys):
    """From docs/, as Jupyter starts them, without a trained run: `train` gets what is missing."""
    asked = []

    def train(config, folder):
        asked.append(config.name)
        shutil.copytree(workdir, folder)

    monkeypatch.setattr(alexnet_jax, "train", train)
    monkeypatch.chdir(ROOT / "docs")
    first, *others = ["".join(cell["source"]) for cell in code]
    assert re.fullmatch(r'workdir = "runs/quickstart"  # .*', first)
    names = {"workdir": f"{tmp_path}/run"}
    with figures() as plt:
        for number, source in enumerate(others, 2):
            exec(compile(source, f"cell {number}", "exec"), names)
        drawn = len(plt.get_fignums())
    assert asked == ["quickstart"]
    assert drawn == sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    printed = capsys.readouterr().out
    for words in (
        "quickstart, step 40: 2 columns, 10 classes",
        "conv2/pool       5 x 5 x 12",
        "column 0 of    share of the gradient",
        "column 1 alone: ",
    ):
        assert words in printed
    assert names["net"].step == 40 and len(names["images"]) == 100


def test_its_outputs_are_those_of_one_run_from_top_to_bottom(code):
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output["name"] for output in outputs if "name" in output} == {"stdout"}
    for cell in code[1:]:
        assert bool(cell["outputs"]) == bool(re.search(r"\bprint\(|plt\.", "".join(cell["source"])))
    # As the text says: a column sees the other from conv3 on.
    assert re.search(r"conv1 +none\nconv2 +none\nconv3 +\d+%\n", "".join(texts(output) for output in outputs))


def test_it_is_small_and_names_no_path_of_a_machine(code):
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = json.loads(NOTEBOOK.read_text())
    for cell in notebook["cells"]:
        for text in ["".join(cell["source"]), *map(texts, cell.get("outputs", []))]:
            assert not re.search(r"(?<![\w.*])[/~]/?\w+/\w+|[A-Z]:\\|site-packages", text), text
        assert set(cell) <= {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
        assert not cell["metadata"]
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
