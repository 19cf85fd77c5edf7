"""experiments/report.py: one page that needs nothing else."""

import html.parser
import re
import shutil

import pytest

from alexnet_jax.runtime.errors import InputError
from experiments import report


class Page(html.parser.HTMLParser):
    """Whether every element is closed, and what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_a_workdirs_page_has_errors_differences_curves_and_kernels(swept, tmp_path):
    workdir = tmp_path / "ReLU"
    shutil.copytree(swept[0] / "ReLU" / "seed-0", workdir)
    report.main([str(workdir)])
    page = Page((workdir / "report.html").read_text())
    assert not page.open and len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for words in (
        "top-1 error",
        "100 images of test[:100], 1 view, step 40",
        "images/s",
        "model.width",
        "data.channels",
        "total:",
    ):
        assert words in page.words


def test_a_sweeps_page_has_its_table_and_every_run(swept, tmp_path):
    report.main([str(swept[0]), f"--out={tmp_path}/page.html"])
    page = Page((tmp_path / "page.html").read_text())
    assert not page.open and len(page.sources) == 1 + 2 * 2
    for words in (
        "top-1 difference",
        "1 of ReLU and 1 of tanh",
        "ReLU/seed-0",
        "tanh/seed-0",
        "model.activation",
    ):
        assert words in page.words


LONG = "no-normalisation-and-a-name-of-40-letters"
LINES = f"""variant,overrides,seeds,failed,top1_error,top1_std,top1_difference,top1_difference_error,\
top5_error,top5_std,top5_difference,top5_difference_error,paper
baseline,,3,0,0.29070064,0.00501853,,,0.04271762,0.00216685,,,37.5 %
{LONG},--config.model.lrn.enabled=False,2,1,0.28042463,,-0.01027601,0.00391764,0.04467091,,0.00195329,,<b>
"""


def test_a_table_is_in_percent_and_no_number_or_heading_breaks(swept, tmp_path):
    shutil.copytree(swept[0] / "ReLU" / "seed-0", tmp_path / LONG / "seed-0")
    (tmp_path / "results.csv").write_text(LINES)
    text = report.page(str(tmp_path))
    cells = re.findall(r'<td class="(name|number|text)">(.*)</td>', text)
    assert [cell for cell in cells if "<code>" not in cell[1]][:14] == [
        ("name", "baseline"), ("number", "3"), ("number", "29.07 ± 0.50"), ("number", "4.27 ± 0.22"),
        ("number", ""), ("number", ""), ("text", "37.5 %"),
        ("name", LONG), ("number", "2, 1 failed"), ("number", "28.04"), ("number", "4.47"),
        ("number", "-1.03 ± 0.39"), ("number", "+0.20"), ("text", "&lt;b&gt;"),
    ]  # fmt: skip
    style = text[text.index("<style>") : text.index("</style>")]
    for selector in ("th", "td.number"):
        assert re.search(rf"^{re.escape(selector)} {{[^}}]*white-space: nowrap", style, re.MULTILINE)
    assert "prefers-color-scheme: dark" in style and "width=device-width" in text
    page = Page(text)
    assert not page.open and len(page.sources) == 1 + 2
    assert f"{LONG}/seed-0 top-1 error 70.00%" in page.words


def test_a_damaged_run_or_table_is_told_and_the_rest_is_there(swept, tmp_path):
    shutil.copytree(swept[0] / "tanh" / "seed-0", tmp_path / "tanh" / "seed-0")
    for name, file, content in (
        ("no-config", "config.json", b"{"),
        ("no-result", "eval.json", b"[]"),
        ("no-metrics", "metrics.jsonl", b"7\n"),
        ("no-kernels", "statistics.npz", b""),
    ):
        shutil.copytree(swept[0] / "ReLU" / "seed-0", tmp_path / name)
        (tmp_path / name / file).write_bytes(content)
    shutil.rmtree(tmp_path / "no-kernels" / "checkpoints")
    (tmp_path / "results.csv").write_bytes(b"variant,top1_error\nReLU,\xff")
    report.main([str(tmp_path)])
    page = Page((tmp_path / "report.html").read_text())
    assert not page.open and len(page.sources) == 2 + 0 + 2 + 1 + 1
    for words in (
        "results.csv: cannot be read",
        "no-config/config.json: is not a configuration",
        "line 1 is not a validation",
        "has no checkpoint",
    ):
        assert words in page.words


def test_bad_input_is_named(swept, tmp_path):
    with pytest.raises(InputError, match="has no config.json"):
        report.main([str(tmp_path)])
    shutil.copytree(swept[0] / "ReLU" / "seed-0", tmp_path / "w" / "ReLU")
    (tmp_path / "w" / "results.csv").write_text("variant,top1_error\nReLU,0.1\n")
    assert "is not a table of a sweep" in report.page(str(tmp_path / "w"))
    with pytest.raises(InputError, match=f"--out={tmp_path}/nowhere/x: cannot be written"):
        report.main([str(swept[0] / "ReLU" / "seed-0"), f"--out={tmp_path}/nowhere/x"])
