"""The pages in Markdown: their links and commands name what exists, and a study's page names its data."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
STUDIES = sorted(path for path in (EXPERIMENTS / "results").iterdir() if path.is_dir())
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(EXPERIMENTS.rglob("*.md"))]


def page_id(page):
    return str(page.relative_to(ROOT))


def links(text):
    """Return the targets of links and images, addresses of the web left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
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


# The changelog names files that are gone.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=page_id)
def test_commands_of_a_page_name_what_exists(page):
    text = page.read_text()
    assert not re.search(r"^python -m", text, re.MULTILINE), "a command is indented, to be shown as one"
    modules = re.findall(r"python -m ((?:alexnet_jax|experiments)[\w.]*)", text)
    files = {f"{module.replace('.', '/')}.py" for module in modules}
    files |= set(re.findall(r"--(?:config|sweep)='?([\w/]+\.py)", text))
    placeholders = {"configs/NAME.py", "experiments/sweeps/FILE.py"}
    assert [file for file in sorted(files - placeholders) if not (ROOT / file).is_file()] == []


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
