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
    """Rows of a run whose arms differ from S alone by `gains` {(method, amount[, share]): gain}.

    Unless `gains` says otherwise, all real pairs of G add 0.1: there is headroom.
    """
    rng, rows = np.random.default_rng(draw), []
    base = rng.normal(0.8, 0.1, images)
    known = {("real", 0): 0.0, ("real_pairs", 100): 0.1}
    for (method, amount, *share), gain in (known | gains).items():
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
                        "generator": "first",
                        "seed": seed,
                        "pairs": (share or [100])[0] + (1321 if method == "real_pairs" else amount),
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


def test_what_is_there_is_supported_and_what_is_not_is_not():
    said, sentences = verdicts(BOTH)
    last = said.pop("50 ControlNet pairs help the U-Net more than 50 of Pix2PixHD")
    assert last in ("ruled out", "inconclusive")
    assert said == {
        "10 ControlNet pairs improve the U-Net": "supported",
        "50 ControlNet pairs improve the U-Net": "supported",
        "50 ControlNet pairs help the U-Net more than 10": "ruled out",
        "10 ControlNet pairs help the U-Net more than 10 of Pix2PixHD": "supported",
    }
    first = sentences["10 ControlNet pairs improve the U-Net"]
    assert "supported. Difference +0.0" in first and "n = 150 images, 5 seeds" in first
    assert "the smallest gain that would have been seen is 0.0" in first


def test_large_amounts_are_grouped_in_thousands():
    said, _ = verdicts({("controlnet", 830): 0.05, ("controlnet", 4150): 0.05})
    assert "4,150 ControlNet pairs help the U-Net more than 830" in said


def test_harm_rules_an_improvement_out():
    said, _ = verdicts({("controlnet", 10): -0.03, ("controlnet", 50): -0.03})
    assert said["10 ControlNet pairs improve the U-Net"] == "ruled out"


def test_a_small_noisy_study_is_inconclusive_and_says_what_it_could_have_shown():
    gains = BOTH | {("real_pairs", 100): 0.9}
    said, sentences = verdicts(gains, seeds=3, images=20, noise=0.1, of_seeds=0.05, draw=3)
    assert set(said.values()) == {"inconclusive"}
    assert all("would have been seen is 0." in text for text in sentences)
    assert not any("headroom" in text for text in sentences)


@pytest.mark.parametrize(
    "low, high, p, said",
    [
        (0.01, 0.03, 0.01, "supported"),
        (0.01, 0.03, 0.20, "inconclusive"),
        (-0.01, 0.004, 0.5, "ruled out"),
        (-0.01, 0.03, 0.3, "inconclusive"),
    ],
)
def test_verdicts_by_hand(low, high, p, said):
    assert claims.verdict({"low": low, "high": high}, p) == said
    insensitive = {"low": low, "high": high, "insensitive": "headroom not shown"}
    assert claims.verdict(insensitive, p) == "inconclusive"
    assert said in claims.VERDICTS


def test_without_headroom_every_claim_says_so_and_low_data_carry_the_question():
    gains = {
        ("controlnet", 10): 0.05,
        ("real_pairs", 100): 0.0,
        ("real", 0, 25): -0.2,
        ("controlnet", 10, 25): -0.15,
        ("real_pairs", 100, 25): -0.1,
    }
    table = claims.table2_claims(made_up(gains)).set_index("share")
    assert table["verdict"].to_dict() == {100: "inconclusive", 25: "supported"}
    said = table["sentence"]
    assert ": inconclusive, headroom not shown: 1,321 real pairs of G add " in said[100]
    assert "(equal epochs, 25 % of S-train): supported. Difference +0.0" in said[25]
    room = claims.headroom(made_up(gains)).set_index("share")
    assert room["enough"].to_dict() == {100: False, 25: True}
    assert room["pairs"].to_dict() == {100: 1321, 25: 1321}
    assert room["sentence"][25].startswith("U-Net, equal epochs, 25 % of S-train: headroom, 1,321")


def test_hard_images_are_chosen_by_trainings_that_are_not_compared():
    gains = {("real", 0, 10): -0.3, ("real_pairs", 100): 0.0, ("real_pairs", 100, 10): 0.0}
    rows = made_up(gains, noise=0.1, of_seeds=0.0, seeds=3)
    harder = claims.harder_half(rows)
    assert harder["id"].nunique() == 75 and set(harder["share"]) == {100}
    everything = rows[(rows["method"] == "real") & (rows["share"] == 100)]
    assert harder.query("method == 'real'")["dice"].mean() < everything["dice"].mean() - 0.05
    found = claims.headroom(harder)
    assert found["difference"].abs().max() < 0.02 and found["images"].tolist() == [75]
    assert claims.harder_half(rows[rows["share"] == 100]).empty


def test_headroom_that_was_not_measured_is_none_and_equal_steps_lend_theirs():
    rows = made_up({("controlnet", 10): 0.05})
    alone = claims.table2_claims(rows[rows["method"] != "real_pairs"])
    assert alone["verdict"].tolist() == ["inconclusive"]
    assert "its headroom was not measured" in alone["sentence"][0]
    epochs = rows[rows["method"] != "real_pairs"]
    both = claims.table2_claims(pd.concat([epochs, rows.assign(schedule="steps")]))
    assert both["verdict"].tolist() == ["supported", "supported"]


def test_where_masks_of_other_pairs_do_no_harm_nothing_is_judged():
    gains = {("controlnet", 10): 0.05, ("controlnet_shuffled", 10): -0.2}
    assert claims.table2_claims(made_up(gains))["verdict"].tolist() == ["supported"]
    harmless = claims.table2_claims(made_up(gains | {("controlnet_shuffled", 10): 0.02}))
    assert harmless["verdict"].tolist() == ["inconclusive"]
    assert "insensitive: masks of other pairs cost -0.0" in harmless["sentence"][0]


def test_arms_of_fewer_seeds_are_compared_on_those_that_both_have():
    rows = made_up({("controlnet", 10): 0.05})
    few = rows[(rows["method"] != "controlnet") | (rows["seed"] < 3)]
    table = claims.table2_claims(few)
    said = "3 seeds with one training of each generator;"
    assert table["seeds"].tolist() == [3] and said in table["sentence"][0]
    found = claims.arms(few)
    first, second = claims.paired(found["controlnet 10"], found["real 0"])
    assert first.shape == second.shape == (1, 3, 150)
    none = found["real 0"].rename(index=lambda seed: seed + 9, level="seed")
    with pytest.raises(ValueError, match="no seed in common"):
        claims.paired(found["controlnet 10"], none)


def test_a_treatment_is_compared_with_the_generator_whose_pairs_it_changes():
    gains = {("controlnet", 10): 0.02, ("controlnet_empty", 10): -0.03}
    rows = made_up(gains)
    other = rows[rows["method"] == "controlnet"]
    other = other.assign(generator="1", dice=other["dice"] + 0.5)
    table = claims.controls(pd.concat([rows, other], ignore_index=True))
    (prompts,) = table[table["claim"].str.startswith("prompts")].to_dict("records")
    assert prompts["difference"] == pytest.approx(0.05, abs=0.005) and prompts["generators"] == 1
    improves = claims.table2_claims(pd.concat([rows, other], ignore_index=True))
    assert improves["difference"].iloc[0] == pytest.approx(0.27, abs=0.005)


def test_a_generator_is_judged_by_the_controls_whatever_it_is_called():
    rows = made_up({("classicalgan", 10): 0.05, ("classical", 0): 0.05})
    rows = rows[rows["method"] != "real_pairs"]
    table = claims.controls(rows).set_index("arm")["verdict"]
    assert table["classicalgan 10"] == "inconclusive" and table["classical 0"] == "supported"


def test_generators_are_resampled_too():
    rows = made_up({("controlnet", 10): 0.02})
    other = rows[rows["method"] == "controlnet"].assign(generator="1")
    other["dice"] -= 0.04
    both = claims.table2_claims(pd.concat([rows, other]))
    one = claims.table2_claims(rows)
    assert both["generators"].item() == 2 and one["verdict"].item() == "supported"
    assert both["verdict"].item() == "inconclusive"
    assert "5 seeds of each of 2 generators" in both["sentence"][0]


def test_a_run_without_synthetic_arms_judges_nothing():
    assert claims.table2_claims(made_up({})).empty
    only_one = claims.table2_claims(made_up({("controlnet", 10): 0.02}))
    assert only_one["claim"].tolist() == ["10 ControlNet pairs improve the U-Net (equal epochs)"]


@pytest.mark.parametrize(
    "longer, equal, said",
    [
        (0.05, 0.05, "better, also with equal optimiser steps"),
        (0.05, 0.0, "the gain does not survive equal training"),
        (0.0, 0.05, "better with equal optimiser steps, not shown with equal epochs"),
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


def test_controls_are_claims_of_what_they_change():
    rows = made_up(
        {
            ("classical", 0): 0.03,
            ("controlnet", 10): 0.02,
            ("controlnet", 50): 0.03,
            ("controlnet", 50, 0): -0.2,
            ("controlnet_real", 10): 0.02,
            ("controlnet_shuffled", 10): -0.2,
            ("controlnet_first", 10): 0.05,
            ("base", 10): -0.1,
            ("controlnet_best", 10): 0.06,
        },
        schedule="steps",
        noise=0.003,
        of_seeds=0.0005,
    )
    table = claims.controls(rows).set_index("claim")
    assert table["verdict"].rename(lambda text: text.partition(" (")[0]).to_dict() == {
        "ControlNet pairs with masks of other pairs harm the U-Net": "supported",
        "classical augmentation improves the U-Net": "supported",
        "10 ControlNet pairs help the U-Net more than classical augmentation": "ruled out",
        "50 ControlNet pairs alone train the U-Net better than S-train": "ruled out",
        "real masks help the U-Net more than the main ones": "ruled out",
        "ControlNet pairs of high mask fidelity help the U-Net more than all": "supported",
        "ControlNet pairs first, then real ones, help the U-Net more than all at once": "supported",
        "ControlNet pairs help the U-Net more than the base's without control": "supported",
    }
    assert (table["p_holm"] >= table["p"]).all()
    without = rows[rows["method"] != "real_pairs"]
    judged = claims.controls(without)
    kept = judged.loc[judged["verdict"] != "inconclusive", "arm"].tolist()
    assert kept == ["real 0", "classical 0"]  # the others depend on the headroom


def test_low_shares_are_compared_with_the_same_share_alone():
    gains = {
        ("real", 0, 10): -0.2,
        ("controlnet", 5, 10): -0.1,
        ("controlnet", 5): 0.0,
        ("controlnet", 50, 0): -0.3,
    }
    table = claims.table2_comparison(made_up(gains, schedule="steps")).set_index("arm")
    assert set(table["share"]) == {10, 100} and "controlnet 50 share0" not in table.index
    found = table["difference"].round(2)
    assert found["controlnet 5 share10"] == 0.1 and found["controlnet 5"] == 0.0
    assert np.isnan(found["real 0 share10"]) and found["real_pairs 100"] == 0.1


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


@pytest.mark.parametrize("better, said", [(2, "supported"), (-2, "ruled out"), (0, "inconclusive")])
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
    other = quality(2).query("method == 'controlnet' and generator_seed == 0")
    known = pd.concat([quality(2), other.assign(method="elsewhere")])  # trained once, by others
    row = claims.compare_generators(known, "ssim").set_index("arm").loc["elsewhere"]
    assert row["seeds"] == 1 and row[["p", "p_images", "p_holm"]].isna().all()


def test_generators_are_sampled_a_gain_of_two_seeds_that_differ_is_not_supported():
    found = claims.table1_claims(quality(0.7, seeds=2, spread=1.5)).set_index("measure")
    fixed = claims.table1_claims(quality(0.7, seeds=2)).set_index("measure")
    width = (found["high"] - found["low"]) / (fixed["high"] - fixed["low"])
    assert (width > 3).all() and "supported" not in set(found["verdict"])


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
