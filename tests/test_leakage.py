"""Leakage: every planted leak stops the run, and nothing else does."""

import numpy as np
import pandas as pd
import pytest

from lesionlib.data.dataset import Study
from lesionlib.engine.errors import InputError
from lesionlib.evaluation import leakage
from lesionlib.masks import recipe

PARTS = ["G", "S-train", "S-val", "S-test"]


def study(size=48):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"id": [f"i{k}" for k in range(16)], "split": PARTS * 4, "group": np.arange(16) % 16}
    )
    images = rng.integers(0, 255, (16, size, size, 3), np.uint8)
    return Study(images, recipe.random_masks(16, size, seed=1, mode="paper"), table, "print")


def test_a_sound_split_passes():
    leakage.check_parts(study(), "grouped")


@pytest.mark.parametrize(
    "how, said",
    [
        ("id", "one id lies in several parts"),
        ("picture", "one picture lies in several parts"),
        ("group", "one group of one lesion or picture lies in several parts"),
    ],
)
def test_a_wrong_split_is_noticed(how, said):
    wrong = study()
    if how == "id":
        wrong.table.loc[7, "id"] = "i4"  # S-test and G
    elif how == "picture":
        wrong.images[7] = wrong.images[4]
    else:
        wrong.table.loc[7, "group"] = 4
    with pytest.raises(InputError, match=said):
        leakage.check_parts(wrong, "grouped")
    if how == "group":
        leakage.check_parts(wrong, "paper")  # which promises nothing about groups


def test_a_real_pair_of_g_that_is_a_test_picture_is_noticed_however_it_is_turned():
    leakage.check_real_pairs(study())
    wrong = study()
    wrong.images[4] = np.rot90(wrong.images[7])[:, ::-1]  # G and S-test
    leakage.check_parts(wrong, "grouped")  # which compares pictures as they are
    with pytest.raises(InputError, match="real pairs of G: the picture of i4 is that of i7 in S-t"):
        leakage.check_real_pairs(wrong)
    wrong = study()
    wrong.images[4] = wrong.images[5]  # S-train: the same pair twice in training
    leakage.check_real_pairs(wrong)


def synthetic_masks(n=30):
    return recipe.random_masks(n, 48, seed=9, mode="paper")


def check(facts=None, some=None):
    leakage.check_synthetic(
        "gan", synthetic_masks() if some is None else some, facts or {}, study()
    )


def test_masks_of_its_own_and_of_g_and_s_train_pass():
    check()
    check({"trained_on": ["i0", "i4"], "data": "print"})
    check(some=study().masks[[0, 1, 4, 5]])


def test_a_generator_trained_on_s_stops_the_run():
    with pytest.raises(InputError, match=r"synthetic set gan: .* trained on 2 images of S, i1 am"):
        check({"trained_on": ["i0", "i1", "i3"]})


def test_a_set_of_another_split_stops_the_run():
    with pytest.raises(InputError, match="made for other data or another split"):
        check({"data": "another"})


@pytest.mark.parametrize("row", [2, 3])
@pytest.mark.parametrize(
    "move",
    [
        lambda m: m,
        lambda m: m[::-1],
        lambda m: m[:, ::-1],
        lambda m: m.T,
        lambda m: np.rot90(m),
        lambda m: np.rot90(m, 2),
        lambda m: np.rot90(m, 3),
        lambda m: np.rot90(m).T,
    ],
)
def test_a_mask_of_s_val_or_s_test_in_any_position_stops_the_run(row, move):
    some = synthetic_masks()
    some[17] = move(study().masks[row])
    with pytest.raises(InputError, match=f"mask 17 is the mask of i{row}, which is kept for"):
        check(some=some)
