"""The form of the source notebooks: what makes them readable, runnable alone, and comparable."""

import ast
import itertools
import json
import re
import statistics

import pytest
from prose import MOST_SENTENCES, count_sentences

from lesionlib.engine import code
from lesionlib.engine import settings as config
from lesionlib.engine.files import ROOT
from lesionlib.engine.stages import STAGES
from lesionlib.report import notebooks

PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))  # the stages
NAMES = [path.stem for path in PATHS]
PLACES = re.DOTALL | re.MULTILINE
PLAYGROUND = ROOT / "notebooks" / "playground.ipynb"  # no stage
ALL, ALL_NAMES = [*PATHS, PLAYGROUND], [*NAMES, PLAYGROUND.stem]


def cells(path, kind=None):
    found = json.loads(path.read_text())["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def test_the_seven_stages_and_the_playground_are_there():
    assert NAMES == list(STAGES)
    assert sorted((ROOT / "notebooks").glob("*.ipynb")) == ALL


@pytest.mark.parametrize("path", ALL, ids=ALL_NAMES)
def test_no_outputs_are_committed(path):
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells(path, "code"))


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_parameters_are_run_preset_and_overrides_each_with_a_comment(path):
    cell = next(c for c in cells(path, "code") if code.lists_parameters(c))
    lines = "".join(cell["source"]).splitlines()
    values = {"run": "runs/quick", "preset": "quick", "overrides": {}}
    own = {"cells": "all"} if path.stem == "06_segmentation" else {}
    assert notebooks.parameters(path) == values | own
    assert all("  # " in line for line in lines)


def test_the_playground_takes_the_newest_run_unless_one_is_named():
    assert notebooks.parameters(PLAYGROUND) == {"run": "", "folder": ""}


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_cells_after_the_parameters_load_and_show_the_settings(path):
    sources = ["".join(c["source"]) for c in cells(path, "code")]
    assert f'Run("{path.stem}", run, preset, overrides' in sources[1]
    assert sources[2] == "run.show_settings()"


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_group_of_settings_that_is_read_is_that_of_its_stage(path):
    source = "\n".join("".join(c["source"]) for c in cells(path, "code"))
    read = set(re.findall(r"\bsettings\.(\w+)", source)) & set(config.GROUPS)
    assert read <= set(STAGES[path.stem])


@pytest.mark.parametrize("path", ALL, ids=ALL_NAMES)
def test_cells_are_short_and_portable(path):
    first = cells(path)[0]
    assert first["cell_type"] == "markdown" and "".join(first["source"]).startswith("# ")
    sources = ["".join(cell["source"]) for cell in cells(path, "code")]
    lengths = [len(source.splitlines()) for source in sources]
    assert max(lengths) <= 25 and statistics.median(lengths) <= 6
    for source in sources:
        assert not re.search(r"""["'](/|~|[A-Z]:\\)\w""", source), "absolute path"
        assert "pip install" not in source and "os.chdir" not in source


@pytest.mark.parametrize("path", ALL, ids=ALL_NAMES)
def test_a_sentence_precedes_every_code_cell(path):
    every = cells(path)
    for before, cell in itertools.pairwise(every):
        if cell["cell_type"] == "code":
            text = "".join(before["source"]) if before["cell_type"] == "markdown" else ""
            prose = re.sub(r"^#[^\n]*$|\$\$.*?\$\$|<details>.*?</details>", "", text, flags=PLACES)
            assert count_sentences(prose), f"before: {''.join(cell['source'])}"


def shows(call: ast.Call) -> bool:
    """Whether a call displays a table or a figure."""
    name = ast.unparse(call.func)
    shown = name == "run.table" and any(key.arg == "show" for key in call.keywords)
    return shown or name in ("run.show", "run.figure", "display")


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_sentence_reads_every_table_and_figure(path):
    for cell in cells(path, "code"):
        source = "".join(cell["source"])
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        shown = [call.lineno for call in calls if shows(call)]
        said = [call.lineno for call in calls if ast.unparse(call.func) == "run.say"]
        if shown:
            assert said and max(said) >= max(shown), source


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_three_exercises_each_with_a_short_answer_that_is_folded(path):
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    parts = re.split(r"\*\*Exercise (\d)", text)
    assert parts[1::2] == ["1", "2", "3"]
    for part in parts[2::2]:
        answers = re.findall(r"<details>\s*<summary>.+?</summary>(.*?)</details>", part, re.S)
        assert len(answers) == 1 and 1 <= count_sentences(answers[0]) <= MOST_SENTENCES, part


@pytest.mark.parametrize("path", PATHS[1:6], ids=NAMES[1:6])
def test_the_method_is_there_in_equations(path):
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert re.search(r"^\$\$.+?\$\$$", text, PLACES)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_it_opens_with_a_question_and_a_place_for_the_answer_that_it_finds(path):
    first = "".join(cells(path)[0]["source"])
    assert "**Question.**" in first and f"**Answer.** {notebooks.PLACEHOLDER}" in first
    assert sum("run.answer(" in "".join(cell["source"]) for cell in cells(path, "code")) == 1
    assert "**Written" in "".join(cells(path)[-1]["source"])


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_figure_has_a_note_of_what_it_shows(path):
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.figure":
                assert len(node.args) == 3, ast.unparse(node)


def test_the_answer_goes_to_the_top_and_long_outputs_are_folded(tmp_path):
    table = "<table>" + "<tr><td>1</td></tr>" * 40 + "</table>"
    short = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"text/html": table.replace("<tr><td>1</td></tr>" * 20, ""), "text/plain": "x"},
    }
    long = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"text/html": table, "text/plain": "x"},
    }
    said = {"output_type": "stream", "name": "stdout", "text": ["a <b>\n"] * 31}
    found = {
        "output_type": "display_data",
        "data": {"text/markdown": "It is 7.", "text/plain": ""},
        "metadata": {"text/markdown": {"answer": True}},
    }
    path = tmp_path / "a.ipynb"
    path.write_text(
        json.dumps(
            {
                "cells": [
                    {
                        "cell_type": "markdown",
                        "source": f"# A\n\n**Answer.** {notebooks.PLACEHOLDER}",
                    },
                    {"cell_type": "code", "outputs": [short, long, said, found]},
                ]
            }
        )
    )
    for _ in range(2):  # a second time changes nothing
        notebooks.tidy(path)
        first, second = cells(path)
        assert first["source"] == "# A\n\n**Answer.** It is 7."
        outputs = second["outputs"]
        assert outputs[0] == short and outputs[3] == found
        assert outputs[1]["data"]["text/html"].startswith("<details><summary>39 rows</summary>")
        folded = outputs[2]["data"]["text/html"]
        assert folded.startswith("<details><summary>31 lines</summary><pre>a &lt;b&gt;\n")


def test_every_group_of_settings_reaches_a_stage_or_the_workflow():
    read = {group for groups in STAGES.values() for group in groups}
    assert read | {"jobs"} == set(config.GROUPS)


def test_workflow_passes_only_known_parameters():
    text = (ROOT / "Snakefile").read_text()
    extra = re.findall(r'values\(\s*"(\w+)",\s*(\w+)=', text)
    assert extra and all(
        name in notebooks.parameters(ROOT / "notebooks" / f"{stage}.ipynb") for stage, name in extra
    )
    assert set(re.findall(r'notebook\("(\w+)"\)', text)) == set(STAGES)


def test_failures_and_warnings_of_an_executed_notebook_are_told(tmp_path):
    error = {"output_type": "error", "ename": "InputError", "evalue": "x.jpg: corrupt"}
    said = {"output_type": "stream", "text": ["fine\n", "NOTE: 9 used\n", "WARNING: 3 out\n"]}
    executed = tmp_path / "01_data.ipynb"
    executed.write_text(
        json.dumps(
            {
                "cells": [
                    {"cell_type": "code", "outputs": [said]},
                    {"cell_type": "code", "outputs": [error]},
                ]
            }
        )
    )
    assert notebooks.collect_messages(executed) == [
        "NOTE: 9 used",
        "WARNING: 3 out",
        f"{executed}, cell 2: x.jpg: corrupt",
    ]
