"""Prompted against classified: labels, areas under the curve, and a classifier that learns."""

import numpy as np
import pandas as pd
import pytest

from lesionlib.data import prompts
from lesionlib.evaluation import attributes

DIAGNOSES = ["nevus", "melanoma"]


def labels(n):
    table = pd.DataFrame({"diagnosis": ["nevus", "melanoma", ""][:n] * (n // 3)})
    return table.assign(**{a: 0.0 for a in prompts.ATTRIBUTES})


def test_targets_know_what_is_unknown():
    table = labels(3).assign(streaks=["1", "", "0"])
    wanted = attributes.targets(table, DIAGNOSES)
    assert wanted["nevus"].tolist()[:2] == [1, 0] and np.isnan(wanted["nevus"][2])
    assert wanted["streaks"].iloc[0] == 1 and np.isnan(wanted["streaks"][1])
    assert list(wanted) == [*DIAGNOSES, *prompts.ATTRIBUTES]


def test_area_under_the_curve_by_hand():
    assert attributes.auc([3, 2], [1, 0]) == 1 and attributes.auc([0], [1]) == 0
    assert attributes.auc([2, 1], [1, 0]) == 0.875  # one tie of four pairs
    assert np.isnan(attributes.auc([], [1]))


def test_wishes_differ_in_one_word():
    wishes = attributes.label_requests(DIAGNOSES)
    assert wishes["asked"].tolist() == [*DIAGNOSES, *prompts.ATTRIBUTES]
    assert wishes["prompt"][1] == "a dermoscopic image of a melanoma"
    assert wishes["prompt"][4] == "a dermoscopic image of a nevus with streaks"


def test_table_compares_with_images_that_differ_in_the_label_alone():
    asked = pd.concat([attributes.label_requests(DIAGNOSES)] * 2, ignore_index=True)
    made = pd.DataFrame(0.0, index=asked.index, columns=[*DIAGNOSES, *prompts.ATTRIBUTES])
    for name in made:  # perfect for the diagnoses, without effect for the attributes
        made.loc[asked["asked"] == name, name] = float(name in DIAGNOSES)
    made.loc[asked["diagnosis"] == "nevus", "melanoma"] = -1.0
    real = pd.DataFrame({name: [1.0, 0.0, np.nan] for name in made})
    seen = pd.DataFrame({name: [2.0, 1.0, 9.0] for name in made})
    table = attributes.table(asked, made, real, seen).set_index("label")
    assert table.loc["melanoma", "auc_generated"] == 1 and table.loc["melanoma", "asked"] == 2
    assert table.loc["melanoma", "not_asked"] == 2  # the two that ask for a nevus without more
    assert (table.loc[list(prompts.ATTRIBUTES), "auc_generated"] == 0.5).all()
    assert (table["auc_real"] == 1).all() and (table["real"] == 1).all()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_classifier_learns_what_can_be_seen(tmp_path, precision):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"diagnosis": rng.choice(DIAGNOSES, 64)})
    table = table.assign(**{a: 0.0 for a in prompts.ATTRIBUTES})
    images = rng.integers(100, 140, (64, 32, 32, 3), dtype=np.uint8)
    images[(table["diagnosis"] == "melanoma").to_numpy(), 8:24, 8:24] -= 60
    wanted = attributes.targets(table, DIAGNOSES)
    options = dict(steps=40, seed=0, record={}, precision=precision)
    model = attributes.train(images, wanted, tmp_path, **options)
    scores = attributes.scores(model, images, wanted.columns)
    has = wanted["melanoma"] == 1
    assert attributes.auc(scores.loc[has, "melanoma"], scores.loc[~has, "melanoma"]) > 0.9
    again = attributes.train(images, wanted, tmp_path, **options)
    pd.testing.assert_frame_equal(attributes.scores(again, images, wanted.columns), scores)
    attributes.save(model, tmp_path, wanted.columns, preset="test")
    kept = attributes.scores(attributes.load(tmp_path), images, wanted.columns)
    pd.testing.assert_frame_equal(kept, scores, atol=1e-4)
    assert scores.shape == (64, 7) and pytest.approx(0) != scores.std().min()
