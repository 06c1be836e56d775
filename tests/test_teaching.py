"""Figures that explain the recipe and the sampling, and the sliders where a person is."""

from types import SimpleNamespace

import numpy as np
import pytest

from lesionlib.masks import recipe as recipes
from lesionlib.report import plots, teaching

RECIPE = recipes.Recipe()


def answering(monkeypatch, answers: bool):
    """A kernel whose front end does, or does not, answer questions."""
    parent = {"content": {"allow_stdin": answers}}
    kernel = SimpleNamespace(get_parent=lambda channel: parent)
    monkeypatch.setattr(teaching, "get_ipython", lambda: SimpleNamespace(kernel=kernel))


def test_a_person_is_there_if_the_front_end_answers_questions(monkeypatch):
    assert not teaching.is_attended()  # no kernel at all
    for answers in (True, False):
        answering(monkeypatch, answers)
        assert teaching.is_attended() is answers


def test_sliders_appear_for_a_person_and_draw_what_they_say(monkeypatch):
    shown, found = [], {}
    monkeypatch.setattr(plots, "show", lambda fig, run, name, note: shown.append(note))
    monkeypatch.setattr("ipywidgets.interact", lambda draw, **given: found.update(given, draw=draw))
    teaching.recipe_sliders(32, 0)
    assert not found
    answering(monkeypatch, True)
    teaching.recipe_sliders(32, 0)
    draw = found.pop("draw")
    assert set(found) == {"index", *teaching.SLIDERS}
    values = {name: slider.value for name, slider in found.items()}
    assert recipes.Recipe(**{k: v for k, v in values.items() if k != "index"}) == RECIPE
    draw(**values | {"displacement": 0.12})
    draw(**values | {"element": 0.3})
    assert "displacement=0.12" in shown[0] and shown[0].endswith("kept")
    assert shown[1].endswith("rejected: not one region")


def test_every_value_of_a_slider_is_a_recipe():
    for name, bounds in teaching.SLIDERS.items():
        for value in bounds:
            recipes.Recipe(**{name: value})


def test_rows_of_values_contain_the_mask_of_the_recipe_itself():
    rows = teaching.recipe_values(32, 0, 2, recipes.Recipe(blur=0.02, grid=4))
    steps = recipes.steps(32, 0, 2, recipes.Recipe(blur=0.02, grid=4))
    np.testing.assert_array_equal(rows["grid 2 to 12"][1], steps["open and close"])
    assert {len(row) for row in rows.values()} == {teaching.SHOWN}


def test_the_deformation_shown_is_that_of_the_mask():
    start, bent, shifts = teaching.deformed(32, 0, 2, RECIPE)
    steps = recipes.steps(32, 0, 2, RECIPE)
    np.testing.assert_array_equal(start, steps["blur"])
    np.testing.assert_array_equal(bent, steps["elastic"])
    assert shifts.shape == (2, RECIPE.grid, RECIPE.grid)


@pytest.mark.parametrize("steps, columns", [(1, 1), (4, 4), (50, 6)])
def test_a_strip_shows_the_first_and_the_last_step(steps, columns):
    pictures = np.zeros((steps, 8, 8, 3), np.uint8)
    fig = teaching.denoising_strip(np.arange(steps), {"one": pictures}, {})
    titles = [axis.get_title() for axis in fig.axes]
    assert len(titles) == columns
    assert titles[0].startswith("step 1:") and titles[-1].startswith(f"step {steps}:")
