"""README.md, FIDELITY.md, CONTRIBUTING.md and the pages of results: their links lead somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGES = [*ROOT.glob("*.md"), ROOT / "experiments" / "README.md", *RESULTS.glob("*/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_exist(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("folder", sorted(RESULTS.iterdir()), ids=lambda folder: folder.name)
def test_a_study_has_a_page_that_names_its_files(folder):
    text = (folder / "README.md").read_text()
    for file in folder.iterdir():
        # Runs of one kind are named together: ReLU-seed-N.jsonl.
        name = re.sub(r"seed-\d", "seed-N", file.name)
        assert name in text or name == "README.md", file.name
