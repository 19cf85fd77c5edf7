"""The pages in Markdown: their links, commands, files and fields exist, and a study's page names its data."""

import importlib
import pathlib
import re
import runpy
import shlex

import pytest

from alexnet_jax import config as configuration
from alexnet_jax import table
from alexnet_jax.runtime import command_line
from alexnet_jax.runtime.errors import InputError
from configs import paper

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
STUDIES = sorted(path for path in (EXPERIMENTS / "results").iterdir() if path.is_dir())
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), *sorted(EXPERIMENTS.rglob("*.md"))]
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names what is gone
SYNOPSIS = re.compile(r"\[--|NAME\.py|FILE\.py")  # a form of a command


def page_id(page):
    return str(page.relative_to(ROOT))


def links(text):
    """Return the targets of links and images, in HTML too, addresses of the web left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"\s]+)"', text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text):
    """Return the anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def missing_links(page):
    missing = []
    for target in links(page.read_text()):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            missing.append(target)
    return missing


def unnamed_data(study):
    """Return the files of a study's folder that its page does not name; seed-N stands for every seed."""
    text = (study / "README.md").read_text()
    names = [re.sub(r"seed-\d+", "seed-N", path.name) for path in study.iterdir() if path.name != "README.md"]
    return [name for name in names if name not in text]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_of_a_page_lead_somewhere(page):
    assert missing_links(page) == []


def commands(text):
    """Return the arguments of every `python -m …` of ours in a page, as a shell would split them."""
    text = re.sub(r" *\\\n *", " ", text)
    found = re.findall(r"python -m ((?:alexnet_jax|experiments)[\w.]* *[^`\n]*)", text)
    # A command inside quotes, as for ssh, takes the closing one along.
    found = [command.rstrip("'") if command.count("'") % 2 else command for command in found]
    return [shlex.split(command, comments=True) for command in found if not SYNOPSIS.search(command)]


class Parsed(Exception):
    """The command line of a command, which runs no further."""


def parsed(monkeypatch, module, arguments):
    """Return what a command's own parser makes of its arguments."""
    parse = command_line.Parser.parse

    def stop(self, given):
        raise Parsed(parse(self, given))

    monkeypatch.setattr(command_line.Parser, "parse", stop)
    try:
        importlib.import_module(module).main(arguments)
    except Parsed as result:
        return result.args[0]
    finally:
        monkeypatch.undo()
    raise AssertionError(f"{module} has no command line")


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_commands_of_a_page_name_what_exists(page):
    text = page.read_text()
    assert not re.search(r"^python -m", text, re.MULTILINE), "a command is indented, to be shown as one"
    modules = re.findall(r"python -m ((?:alexnet_jax|experiments)[\w.]*)", text)
    files = {f"{module.replace('.', '/')}.py" for module in modules}
    files |= set(re.findall(r"--(?:config|sweep)='?([\w/]+\.py)", text))
    placeholders = {"configs/NAME.py", "experiments/sweeps/FILE.py"}
    assert [file for file in sorted(files - placeholders) if not (ROOT / file).is_file()] == []
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", [*CURRENT, *sorted((ROOT / "configs").glob("*.py"))], ids=page_id)
def test_commands_of_a_page_have_flags_and_fields_that_exist(page, monkeypatch):
    """Each command line is read by the command's own parser, and its configuration is loaded and checked."""
    for module, *arguments in commands(page.read_text()):
        # N and I stand for numbers.
        arguments = [re.sub("=[NI]$", "=1", argument) for argument in arguments]
        given = parsed(monkeypatch, module, arguments)
        overrides = getattr(given, "overrides", {})
        if getattr(given, "config", None):
            configuration.load(given.config, overrides)
        elif overrides:
            configuration.load("configs/paper.py", overrides)
        if getattr(given, "sweep", None):
            config = configuration.load(given.config, overrides)
            command_line.call_file(
                "--sweep", given.sweep, "get_variants", config, folder="experiments/sweeps"
            )


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_fields_that_a_page_names_exist(page):
    fields = {field for field, _ in configuration.flatten(paper.get_config())}
    parts = {field.partition(".")[0] for field in fields if "." in field}
    named = re.findall(rf"(?:`|--config\.)((?:{'|'.join(sorted(parts))})\.[a-z][\w.]*)", page.read_text())
    names = {name for name in named if not name.endswith((".json", ".py"))}
    assert [name for name in sorted(names) if not any(f"{f}.".startswith(f"{name}.") for f in fields)] == []


@pytest.mark.parametrize("page", [README, *sorted(DOCS.glob("*.md"))], ids=page_id)
def test_code_that_a_page_names_exists(page):
    """Backticks with `file.py` or `file.py: name, name`, from the root, alexnet_jax/ or configs/."""
    for file, names in re.findall(r"`([\w/]+\.py)(?::(?:\w+`| ([\w, ]+)`))?", page.read_text()):
        folders = [ROOT, ROOT / "alexnet_jax", ROOT / "configs"]
        paths = [folder / file for folder in folders if (folder / file).is_file()]
        assert paths or file == "configs/NAME.py", file
        for name in names.split(", ") if names else []:
            assert re.search(rf"^ *(?:def|class) {name}\b", paths[0].read_text(), re.MULTILINE), (
                f"{file}: {name}"
            )


def test_readme_shows_what_describe_prints():
    printed = table.describe(configuration.load("configs/paper.py")).splitlines()
    assert "\n".join(f"    {line}" for line in printed) in README.read_text()


def test_networks_of_the_readme_have_the_parameters_that_it_gives():
    rows = re.findall(r"^\| `.*\b(\w+)\.py(?::\w+)?` \| .* \| ([\d,]+) \|$", README.read_text(), re.MULTILINE)
    pretrain = {"__init__", "pretrain22k"}  # its row has the network that is tuned
    assert {name for name, _ in rows} == {path.stem for path in (ROOT / "configs").glob("*.py")} - pretrain
    for name, parameters in rows:
        layers = table.layer_table(configuration.load(f"configs/{name}.py"))
        assert f"{sum(layer.parameters for layer in layers):,}" == parameters, name


def test_results_of_the_readme_are_those_of_the_pages_that_it_names():
    rows = README.read_text().partition("| result | data |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    checked = 0
    for *_, here, published, page in cells:
        target = links(page)[0].partition("#")[0]
        text = (ROOT / target).read_text() if target else README.read_text().partition("## Quickstart")[2]
        for number in re.findall(r"\d[\d,.e-]*\d", f"{here} {published}"):
            assert number in text, f"{number} is not in {target}"
            checked += 1
    assert checked > 15


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_picture_of_the_columns_is_that_of_the_configuration(theme):
    draw = runpy.run_path(str(DOCS / "images" / "draw_columns.py"))["draw"]
    assert draw(theme) == (DOCS / "images" / f"columns-{theme}.svg").read_text()


def test_every_page_of_docs_is_reached_from_the_readme():
    targets = {target.partition("#")[0] for target in links(README.read_text())}
    assert {page_id(page) for page in DOCS.rglob("*.md")} <= targets


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_has_a_page_that_names_its_data_command_and_date(study):
    text = (study / "README.md").read_text()
    assert unnamed_data(study) == []
    assert re.search(r"^    (python -m|make) ", text, re.MULTILINE)
    assert re.search(r"^- Machine: ", text, re.MULTILINE)
    assert re.search(r"^- Date: 20\d\d-\d\d-\d\d\.", text, re.MULTILINE)
    assert f"results/{study.name}/README.md" in (EXPERIMENTS / "README.md").read_text()


def test_what_is_missing_is_found(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(
        "# A page: `code`, and more\n\n[1](README.md#a-page-code-and-more) [2](#nowhere) ![3](none.png) "
        "[4](https://example.org/none) [5](none/README.md#a) named.csv run-seed-N.jsonl\n"
    )
    for name in ("named.csv", "unnamed.csv", "run-seed-0.jsonl", "run-seed-12.jsonl"):
        (tmp_path / name).touch()
    assert missing_links(page) == ["#nowhere", "none.png", "none/README.md#a"]
    assert sorted(unnamed_data(tmp_path)) == ["unnamed.csv"]


@pytest.mark.parametrize(
    "command",
    [
        "alexnet_jax.main --config=configs/paper.py --mood=train",
        "alexnet_jax.main --config=configs/paper.py --mode=trian",
        "alexnet_jax.main --config=configs/paper.py --config.model.colums=1",
        "experiments.figures figure9 --workdir=DIR",
        "experiments.sweep --config=configs/paper.py --sweep=experiments/sweeps/none.py --workdir=DIR",
    ],
)
def test_a_wrong_command_is_found(command, tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text(f"# A page\n\n    python -m {command}\n")
    with pytest.raises(InputError):
        test_commands_of_a_page_have_flags_and_fields_that_exist(page, monkeypatch)
