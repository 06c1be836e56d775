"""Formulas in the pages of the report: drawn by the browser, without a network."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from prose import REMOTE

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT
from lesionlib.report import maths, pages

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
PUBLISHED = sorted((ROOT / "figures").rglob("*.html"))


def page(folder, cells, metadata=None) -> str:
    """A notebook of these cells as a page of the report."""
    notebook = new_notebook(cells=cells, metadata=metadata or {})
    (folder / "notebooks").mkdir(parents=True)
    nbformat.write(notebook, folder / "notebooks" / "01_data.ipynb")
    pages.write_pages(folder)
    return (folder / "report" / "01_data.html").read_text()


def body(text: str) -> str:
    return text.partition("<main>")[2]


def test_formulas_become_mathml_and_nothing_else_does(tmp_path):
    said = new_output("stream", name="stdout", text="costs $1$ and $x$")
    answer = new_output("display_data", data={"text/markdown": "So $p < 0.05$."})
    text = "At $5 and $6, with $n_i \\le 3$:\n\n$$\\hat{x} = \\frac{a}{b}\n+ c$$\n\n`$HOME$`, 7$"
    cells = [new_markdown_cell(text), new_code_cell("print('$y$')", outputs=[said, answer])]
    found = body(page(tmp_path, cells))
    assert found.count("<math") == 3 and found.count('display="block"') == 1
    assert "At $5 and $6, with <math" in found and "<code>$HOME$</code>, 7$" in found
    assert "costs $1$ and $x$" in found and "$y$" in re.sub("<[^>]*>", "", found)
    assert "n_i" not in found and "<mfrac>" in found and "So <math" in found


@pytest.mark.parametrize("text", ["at $5, and with $x$ more", "$x$, not $5 or $6"])
def test_a_price_does_not_swallow_a_formula(tmp_path, text):
    found = body(page(tmp_path, [new_markdown_cell(text)]))
    assert found.count("<math") == 1 and "<mi>x</mi>" in found and "$5" in found


@pytest.mark.parametrize("formula", [r"\left( a", r"a \nosuchcommand b"])
def test_a_formula_that_cannot_be_converted_is_named(formula):
    with pytest.raises(InputError, match="formula"):
        maths.mathml(formula)


def test_a_page_asks_no_network_whatever_is_in_the_notebook(tmp_path):
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "slider"}
    state = {"application/vnd.jupyter.widget-state+json": {"state": {"a": {}}}}
    cells = [
        new_markdown_cell("$x$\n\n```mermaid\nflowchart LR\n a --> b\n```"),
        new_code_cell("1", outputs=[new_output("display_data", data=view)]),
    ]
    found = page(tmp_path, cells, {"widgets": state})
    assert not REMOTE.findall(found) and "mathjax" not in found.lower()
    assert "a --&gt; b" in found or "a --> b" in found  # the diagram's text is still there


@pytest.mark.parametrize("path", PUBLISHED, ids=[str(p.relative_to(ROOT)) for p in PUBLISHED])
def test_published_pages_ask_no_network(path):
    assert not REMOTE.findall(path.read_text())


def test_remote_addresses_are_found_where_they_are():
    wrong = ['<script src="https://a.b/c.js">', "<link rel=x href='//a.b/c.css'>"]
    wrong += ['<img alt="a" src="http://a.b/c.png">', 'await import("https://a.b")']
    assert all(REMOTE.search(text) for text in wrong)
    assert not REMOTE.search('<a href="https://a.b">b</a><img src="data:image/png;base64,//a">')


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_every_equation_of_a_notebook_is_drawn(path, tmp_path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    prose = re.sub(r"```.*?```|`[^`]*`", "", "\n\n".join(c.source for c in cells), flags=re.S)
    blocks = prose.count("$$") // 2
    inline = len(re.findall(r"\$[^$]+\$", re.sub(r"\$\$.*?\$\$", "", prose, flags=re.S)))
    found = body(page(tmp_path, cells))
    assert found.count('display="block"') == blocks
    assert found.count("<math") == blocks + inline
