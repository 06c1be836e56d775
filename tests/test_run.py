"""What notebooks do with a run: settings of their stage only, tables with a record, shares."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lesionlib.engine.errors import InputError
from lesionlib.engine.stages import STAGES
from lesionlib.report import plots
from lesionlib.report.run import Run

FRAME = pd.DataFrame({"a": [1, 2], "b": [0.5, 0.25]})


@pytest.fixture
def shown(monkeypatch):
    """Tables and figures that were displayed."""
    found = []
    monkeypatch.setattr(plots, "display", found.append)
    return found


@pytest.fixture
def said(monkeypatch):
    """Markdown that was displayed."""
    found = []
    monkeypatch.setattr("IPython.display.display", lambda text: found.append(text.data))
    return found


def test_one_sentence_is_a_paragraph_and_several_are_a_list(tmp_path, said):
    run = Run("07_figures", tmp_path, "quick")
    run.say("a", "", "b")
    run.say("c", "")
    run.say("")
    assert said == ["- a\n- b", "c"]


def test_a_stage_reads_its_own_groups_and_no_other(tmp_path):
    run = Run("04_pix2pixhd", tmp_path, "smoke", {"pix2pixhd_steps": 3})
    assert run.settings.pix2pixhd.steps == 3 and run.settings.training.generator_seed == 0
    with pytest.raises(InputError, match="'segmentation', which are not among those of its stage"):
        _ = run.settings.segmentation
    assert Run("04_pix2pixhd", run, "smoke").folder == tmp_path  # a cell may be run twice
    with pytest.raises(InputError, match="did you mean 'pix2pixhd_steps'"):
        Run("04_pix2pixhd", tmp_path, "smoke", {"pix2pixhd_step": 3})


def test_settings_are_shown_with_their_meaning_and_what_differs_from_quick(tmp_path, shown, said):
    Run("07_figures", tmp_path, "quick", {"example_seed": 5}).show_settings()
    assert said[0].endswith("settings, 1 differ from `quick`: `example_seed`.")
    Run("07_figures", tmp_path, "quick").show_settings()
    assert said[1].startswith("None of these")
    table = shown[0].data.set_index("setting")
    assert table.loc["example_seed", "value"] == 5 and table.loc["example_seed", "meaning"]
    assert table.index[table["changed"] != ""].tolist() == ["example_seed"]


def test_a_table_is_written_with_its_key_and_shown_only_if_asked(tmp_path, shown):
    run = Run("07_figures", tmp_path, "quick")
    assert run.table("one", FRAME, seed=3) is None and not shown
    assert (tmp_path / "tables" / "one.csv").read_text() == "a,b\n1,0.5\n2,0.25\n"
    record = json.loads((tmp_path / "tables" / "one.csv.json").read_text())
    assert set(record["key"]["settings"]) == set(STAGES["07_figures"])
    assert list(record["key"]["code"]) == ["notebooks/07_figures.ipynb"] and record["seed"] == 3
    run.table("one", FRAME, show=["b", "c"])
    assert list(shown[0].data) == ["b"]
    assert run.read("one", "07_figures")["a"].tolist() == [1, 2]
    with pytest.raises(InputError, match="run notebooks/06_segmentation.ipynb first"):
        run.read("two", "06_segmentation")


def test_a_share_of_the_grid_shows_everything_and_writes_nothing(tmp_path, shown):
    run = Run("06_segmentation", tmp_path, "quick", whole=False)
    run.table("one", FRAME, show=True)
    fig, _ = plt.subplots()
    run.figure(fig, "curve", "n = 2")
    assert len(shown) == 2 and not list(tmp_path.rglob("*.*"))
    whole = Run("06_segmentation", tmp_path, "quick")
    fig, _ = plt.subplots()
    whole.figure(fig, "curve", "n = 2")
    assert (tmp_path / "figures" / "curve.png").exists()
