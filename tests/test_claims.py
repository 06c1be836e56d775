"""Sentences follow the numbers: made-up tables for each outcome."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from lesionlib.data import dataset
from lesionlib.evaluation import claims


def made_up(
    gains: dict, seeds=5, images=150, noise=0.01, of_seeds=0.002, draw=0, schedule="epochs"
):
    """Rows of a run whose arms differ from S alone by `gains` {(method, amount[, share]): gain}."""
    rng, rows = np.random.default_rng(draw), []
    base = rng.normal(0.8, 0.1, images)
    for (method, amount, *share), gain in ({("real", 0): 0.0} | gains).items():
        for seed in range(seeds):
            dice = base + gain + rng.normal(0, of_seeds) + rng.normal(0, noise, images)
            rows.append(
                pd.DataFrame(
                    {
                        "network": "unet",
                        "method": method,
                        "amount": amount,
                        "share": (share or [100])[0],
                        "schedule": schedule,
                        "seed": seed,
                        "id": np.arange(images),
                        "dice": dice,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def verdicts(gains, **options):
    table = claims.table2_claims(made_up(gains, **options)).set_index("claim")
    table.index = table.index.str.removesuffix(" (equal epochs)")
    return table["verdict"].to_dict(), table["sentence"]


BOTH = {
    ("controlnet", 10): 0.05,
    ("controlnet", 50): 0.05,
    ("pix2pixhd", 10): 0.01,
    ("pix2pixhd", 50): 0.048,
}


def test_what_is_there_is_confirmed_and_what_is_not_is_not():
    said, sentences = verdicts(BOTH)
    last = said.pop("50 ControlNet pairs help the U-Net more than 50 of Pix2PixHD")
    assert last in ("not confirmed", "not resolvable")
    assert said == {
        "10 ControlNet pairs improve the U-Net": "confirmed",
        "50 ControlNet pairs improve the U-Net": "confirmed",
        "50 ControlNet pairs help the U-Net more than 10": "not confirmed",
        "10 ControlNet pairs help the U-Net more than 10 of Pix2PixHD": "confirmed",
    }
    first = sentences["10 ControlNet pairs improve the U-Net"]
    assert "confirmed. Difference +0.048, 95 % interval +0.043 to +0.052" in first
    assert "n = 150 images, 5 seeds" in first
    assert "would have shown" not in first


def test_harm_is_not_confirmed():
    said, _ = verdicts({("controlnet", 10): -0.03, ("controlnet", 50): -0.03})
    assert said["10 ControlNet pairs improve the U-Net"] == "not confirmed"


def test_a_small_noisy_study_resolves_nothing_and_says_what_it_could_have_shown():
    said, sentences = verdicts(BOTH, seeds=3, images=20, noise=0.1, of_seeds=0.05, draw=1)
    assert set(said.values()) == {"not resolvable"}
    assert all("this design would have shown 0." in text for text in sentences)


@pytest.mark.parametrize(
    "low, high, p, said",
    [
        (0.01, 0.03, 0.01, "confirmed"),
        (0.01, 0.03, 0.20, "not resolvable"),
        (-0.01, 0.004, 0.5, "not confirmed"),
        (-0.01, 0.03, 0.3, "not resolvable"),
    ],
)
def test_verdicts_by_hand(low, high, p, said):
    assert claims.verdict({"low": low, "high": high}, p) == said


def test_a_run_without_synthetic_arms_judges_nothing():
    assert claims.table2_claims(made_up({})).empty
    only_one = claims.table2_claims(made_up({("controlnet", 10): 0.02}))
    assert only_one["claim"].tolist() == ["10 ControlNet pairs improve the U-Net (equal epochs)"]


@pytest.mark.parametrize(
    "longer, equal, said",
    [
        (0.05, 0.05, "better, also with equal optimiser steps"),
        (0.05, 0.0, "the gain does not survive equal training"),
        (0.0, 0.05, "better with equal optimiser steps, though not with equal epochs"),
        (0.0, 0.0, "not shown to be better under either schedule"),
    ],
)
def test_what_survives_equal_training_is_said(longer, equal, said):
    rows = pd.concat(
        [
            made_up({("controlnet", 10): gain}, schedule=name, draw=i)
            for i, (name, gain) in enumerate((("epochs", longer), ("steps", equal)))
        ]
    )
    lines = claims.survival(claims.table2_claims(rows))
    assert len(lines) == 1 and lines[0].startswith("U-Net, controlnet 10 against real 0: ")
    assert said in lines[0]
    assert claims.survival(claims.table2_claims(made_up({("controlnet", 10): 0.05}))) == []


def test_controls_are_compared_with_what_they_change_and_say_which_way():
    rows = made_up(
        {
            ("classical", 0): 0.03,
            ("controlnet", 10): 0.02,
            ("controlnet", 50): 0.03,
            ("controlnet", 50, 0): -0.2,
            ("controlnet_real", 10): 0.02,
            ("base", 10): -0.1,
            ("controlnet_best", 10): 0.06,
        },
        schedule="steps",
        noise=0.003,
        of_seeds=0.0005,
    )
    table = claims.controls(rows, ["controlnet", "pix2pixhd"]).set_index("comparison")
    assert table["verdict"].to_dict() == {
        "classical augmentation against none": "better",
        "controlnet: few pairs against classical augmentation": "worse",
        "controlnet: synthetic pairs only against real ones only": "worse",
        "real masks re-used against the main masks": "equivalent",
        "controlnet: filtered by mask fidelity against unfiltered": "better",
        "images without control against the ControlNet's": "worse",
    }
    assert (table["p_holm"] >= table["p"]).all()


def test_the_low_data_curve_compares_with_the_same_share_alone():
    gains = {
        ("real", 0, 10): -0.2,
        ("controlnet", 5, 10): -0.1,
        ("controlnet", 5): 0.0,
        ("controlnet", 50): 0.02,
        ("controlnet_real", 5): 0.5,
        ("classical", 0): 0.4,
        ("controlnet", 50, 0): -0.3,
    }
    curve = claims.low_data(made_up(gains, schedule="steps"))
    assert list(zip(curve["share"], curve["arm"], strict=True)) == [
        (10, "real"),
        (10, "controlnet"),
        (100, "real"),
        (100, "controlnet"),
    ]
    assert curve["dice"].round(1).tolist() == [0.6, 0.7, 0.8, 0.8]
    assert curve["difference"].round(2).tolist()[1::2] == [0.1, 0.0]
    assert claims.low_data(made_up({("controlnet", 5): 0.1})).empty


def quality(better, n=60, seeds=3, spread=0.0):
    """Rows per image of two generators; the ControlNet is better by `better` spreads.

    `spread`: by how much the gain of every second generator seed is larger and smaller.
    """
    rng, rows = np.random.default_rng(0), []
    for seed, (method, sign) in product(range(seeds), (("controlnet", 1), ("pix2pixhd", 0))):
        gain = better * sign + spread * (-1) ** seed * sign + rng.normal(0, 1, n)
        rows.append(
            pd.DataFrame(
                {
                    "method": method,
                    "generator_seed": seed,
                    "id": np.arange(n),
                    "mse": 0.1 - 0.01 * gain,
                    "psnr_255": 58 + gain,
                    "ssim": 0.5 + 0.1 * gain,
                }
            )
        )
    return pd.concat(rows)


@pytest.mark.parametrize(
    "better, said", [(2, "confirmed"), (-2, "not confirmed"), (0, "not resolvable")]
)
def test_claims_on_images_follow_the_numbers_whichever_way_is_up(better, said):
    table = claims.table1_claims(quality(better))
    assert set(table["verdict"]) == {said}
    assert table["claim"].tolist() == [
        f"ControlNet has {words} than Pix2PixHD"
        for words in ("a lower MSE", "a higher PSNR", "a higher SSIM")
    ]
    assert claims.table1_claims(quality(1).query("method == 'controlnet'")).empty


def test_one_training_of_each_generator_gives_no_p_value_and_no_verdict():
    table = claims.table1_claims(quality(2, seeds=1))
    assert set(table["verdict"]) == {"not tested"} and table[
        ["p", "p_holm", "p_images"]
    ].isna().all(None)
    assert (
        table["sentence"].str.contains("trained once").all() and "p =" not in table["sentence"][0]
    )
    compared = claims.compare_generators(quality(2, seeds=1), "ssim")
    assert compared[["p", "p_images", "p_holm"]].isna().all(None) and compared["difference"][0] > 0
    assert claims.compare_generators(quality(2), "ssim")["p"][0] < 0.05


def test_generators_are_sampled_a_gain_of_two_seeds_that_differ_is_not_confirmed():
    found = claims.table1_claims(quality(0.7, seeds=2, spread=1.5)).set_index("measure")
    fixed = claims.table1_claims(quality(0.7, seeds=2)).set_index("measure")
    width = (found["high"] - found["low"]) / (fixed["high"] - fixed["low"])
    assert (width > 3).all() and "confirmed" not in set(found["verdict"])


def test_subgroups_state_n_and_find_an_effect_that_is_in_one_of_them_only():
    rows = made_up({("controlnet", 50): 0.0})
    helped = (rows["method"] == "controlnet") & (rows["id"] < 30)
    rows.loc[helped, "dice"] += 0.1
    sizes = ["small"] * 30 + ["large"] * 119 + ["huge"]
    of_image = pd.DataFrame({"id": np.arange(150), "size": sizes})
    table = claims.subgroups(rows, of_image, "controlnet 50", "real 0").set_index("is")
    assert table["n"].to_dict() == {"huge": 1, "large": 119, "small": 30}
    assert np.isnan(table.loc["huge", "low"]) and np.isfinite(table.loc["huge", "difference"])
    assert table.loc["small", "low"] > 0.05 and abs(table.loc["large", "difference"]) < 0.01


def test_groups_are_named_and_unknown_diagnoses_too():
    images = np.full((3, 16, 16, 3), (220, 180, 160), np.uint8)
    images[1] = (90, 60, 40)
    masks = np.zeros((3, 16, 16), np.uint8)
    masks[0, :4, :4], masks[1, :8, :8], masks[2, :12, :12] = 1, 1, 1
    table = pd.DataFrame({"id": ["a", "b", "c"], "diagnosis": ["nevus", "", None]})
    found = claims.groups(dataset.Study(images, masks, table, "f"))
    assert found["lesion size"].tolist() == ["small", "medium-sized", "large"]
    assert found["diagnosis"].tolist() == ["nevus", "unknown", "unknown"]
    assert found["skin tone"].tolist() == ["light", "tan or darker", "light"]
