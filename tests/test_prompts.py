"""The published prompt grammar, by hand, and the labels drawn for the generators."""

import numpy as np
import pandas as pd
import pytest

from lesionlib.data import prompts
from lesionlib.data.prompts import ATTRIBUTES, prompt

START = "a dermoscopic image of a"


def test_prompts_by_hand():
    some = {"diagnosis": "melanoma", "pigment_network": 1, "streaks": 1.0, "globules": 1}
    assert prompt({"diagnosis": "nevus", "streaks": 0}) == f"{START} nevus"
    assert prompt({"diagnosis": ""}) == f"{START} skin lesion"
    assert prompt({"diagnosis": "actinic keratosis"}) == f"{START}n actinic keratosis"
    assert prompt(some) == f"{START} melanoma with pigment network, streaks and globules"
    assert prompt(some, "diagnosis") == f"{START} melanoma"
    assert prompt(some, "empty") == ""
    assert prompt({"diagnosis": "nevus", "streaks": np.nan}) == f"{START} nevus"


def test_details_are_said_in_the_order_asked_and_left_out_when_unknown():
    mask = np.zeros((20, 20), np.uint8)
    mask[1:8, 1:8] = 1  # 49 of 400 pixels, centroid in the upper left
    labels = {"diagnosis": "nevus", "site": "head/neck", "age": "85", "sex": "female"}
    assert prompt(labels, "full", prompts.DETAILS, mask) == (
        f"{START} nevus, medium-sized, in the upper left, on the head/neck, of an 85-year-old woman"
    )
    assert prompt(labels, "full", ["site"]) == f"{START} nevus, on the head/neck"
    bare = {"diagnosis": "nevus", "site": "", "age": "", "sex": "unknown"}
    assert prompt(bare, "full", prompts.DETAILS) == f"{START} nevus"


@pytest.mark.parametrize(
    "age, sex, said",
    [
        ("30", "male", "of a 30-year-old man"),
        ("18", "", "of an 18-year-old person"),
        ("", "female", "of a woman"),
        ("unknown", "unknown", ""),
    ],
)
def test_people(age, sex, said):
    assert prompts.person(age, sex) == said


@pytest.mark.parametrize(
    "rows, columns, said",
    [
        (slice(8, 12), slice(8, 12), "in the centre"),
        (slice(0, 4), slice(8, 12), "in the upper part"),
        (slice(16, 20), slice(16, 20), "in the lower right"),
        (slice(8, 12), slice(0, 4), "on the left side"),
        (slice(0, 0), slice(0, 0), ""),
    ],
)
def test_positions(rows, columns, said):
    mask = np.zeros((20, 20), np.uint8)
    mask[rows, columns] = 1
    assert prompts.lesion_position(mask) == said


def test_sizes():
    sizes = []
    for rows in (1, 2, 5, 6, 20):
        mask = np.zeros((20, 20), np.uint8)
        mask[:rows] = 1
        sizes.append(prompts.lesion_size(mask))
    assert sizes == ["small", "medium-sized", "medium-sized", "large", "large"]


@pytest.fixture
def labels():
    """18 plain nevi, one with streaks, one melanoma."""
    table = pd.DataFrame({"id": [f"i{k:02d}" for k in range(20)], "diagnosis": "nevus"})
    table[list(ATTRIBUTES)] = 0.0
    table.loc[18, "streaks"] = 1.0
    table.loc[19, "diagnosis"] = "melanoma"
    return table


def test_a_drawn_prompt_depends_on_seed_and_index_alone(labels):
    long = prompts.draw(labels, 20, seed=3)
    shuffled = labels.sample(frac=1, random_state=0)
    assert long["id"][5:9].tolist() == prompts.draw(shuffled, 4, 3, first=5)["id"].tolist()
    assert long["id"].tolist() != prompts.draw(labels, 20, seed=4)["id"].tolist()


def test_rare_combinations_can_be_asked_for(labels):
    joint = prompts.draw(labels, 3000, 0, "joint")
    rare = prompts.draw(labels, 3000, 0, "uniform")
    for table, share in ((joint, 1 / 20), (rare, 1 / 3)):
        assert (table["diagnosis"] == "melanoma").mean() == pytest.approx(share, abs=0.03)
        assert table["streaks"].mean() == pytest.approx(share, abs=0.03)
    wished = prompts.draw(labels.assign(weight=[0.0] * 19 + [2.0]), 50, 0, "weight")
    assert (wished["diagnosis"] == "melanoma").all()
