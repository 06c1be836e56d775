"""Sentences of notebook 05, on made-up tables of every outcome."""

import numpy as np
import pandas as pd
import pytest
from prose import MOST_SENTENCES, count_sentences

from lesionlib.report import readings_images as own

TABLE1 = pd.DataFrame(
    {
        "method": ["controlnet", "pix2pixhd"],
        "n": 20,
        "mse": [0.1, 0.2],
        "psnr_1": [10.0, 7.0],
        "ssim": [0.5, 0.6],
        "lpips": [0.3, 0.4],
    }
)


def test_the_order_of_the_two_generators_is_read_with_the_sign_of_each_measure():
    assert "better than that of Pix2PixHD in MSE and PSNR; in the paper" in own.table1(TABLE1)
    swapped = TABLE1.assign(method=TABLE1["method"].to_numpy()[::-1])
    assert "Pix2PixHD in SSIM; in" in own.table1(swapped)
    worse = TABLE1.assign(mse=[0.3, 0.2], psnr_1=[5.0, 7.0])
    assert "in none of the paper's measures" in own.table1(worse)
    assert own.table1(TABLE1[:1]) == "Mean SSIM: 0.500."
    assert "ControlNet 0.500 and Pix2PixHD 0.600 (paper: Pix2PixHD 0.71 and ControlNet 0.80)" in (
        own.ssim(TABLE1)
    )


def arm(name, measure, difference, seeds=1):
    bounds = {"low": difference - 0.1, "high": difference + 0.1}
    return {"arm": name, "measure": measure, "difference": difference, "seeds": seeds} | bounds


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_decide_in_which_measures_generators_differ(seeds):
    differences = {"mse": -0.5, "psnr_1": -0.5, "psnr_255": -0.5, "ssim": 0.05, "lpips": 0.5}
    rows = [arm("gan", name, value, seeds) for name, value in differences.items()]
    rows += [arm("pix2pixhd", name, np.nan, np.nan) for name in differences]
    first, *rest = own.comparison(pd.DataFrame(rows))
    assert first == (
        "gan against Pix2PixHD: better in MSE, worse in PSNR and LPIPS, not told apart in SSIM."
    )
    assert bool(rest) == (seeds == 1)
    alone = pd.DataFrame({"arm": ["pix2pixhd"], "mean": 0.5, "measure": "ssim"})
    assert own.comparison(alone) == ["There is no second generator to compare with."]


def test_the_spread_over_images_stands_beside_the_gap_between_means():
    wide = pd.DataFrame({"method": ["a", "a", "b", "b"], "ssim": [0.1, 0.9, 0.2, 0.9]})
    assert "more than the 0.050 between" in own.spread(wide)
    narrow = wide.assign(ssim=[0.1, 0.1, 0.9, 0.9])
    assert "0.000, less than the 0.800 between" in own.spread(narrow)
    assert own.spread(wide[:2]).endswith("deviation of 0.566.")


def test_fidelity_is_above_chance_only_if_its_interval_is():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"images": np.repeat(["real", "good", "base", "bad"], 30)})
    means = rows["images"].map({"real": 0.9, "good": 0.8, "base": 0.2, "bad": 0.1})
    rows = rows.assign(masks="S-test", chance=0.2, dice=means + 0.02 * rng.normal(size=120))
    rows.loc[rows["images"] == "base", "dice"] = 0.203 + 0.02 * np.tile([-1, 1], 15)
    good, base, bad = own.above_chance(rows)
    assert good.startswith("Good, masks of S-test: above chance, by +0.")
    assert "not told from chance, by +0.003" in base and "below chance, by -0." in bad
    assert own.above_chance(rows.assign(chance=np.nan)) == []


def sets(**kid):
    rows = pd.DataFrame({"images": list(kid), "kid": list(kid.values()), "kid_sd": 0.05})
    return rows.assign(recall=np.linspace(0.9, 0.5, len(rows)), features="f")


def test_sets_are_near_the_floor_or_beyond_it():
    (text,) = own.sets(sets(real=0.0, a=0.09, b=0.2))
    assert "within two such deviations of it: a, beyond them: b." in text
    assert "Recall is lowest for b (0.50; real images 0.90)" in text
    (alone,) = own.sets(sets(real=0.0, a=0.05))
    assert "beyond them" not in alone and alone.endswith("Recall of a (0.50; real images 0.90).")
    assert "within two" not in own.sets(sets(real=0.0, a=0.5))[0]


def test_copies_and_nearness_are_told_apart():
    table = pd.DataFrame(
        {
            "images": ["real", "a", "b"],
            "n": [9, 10, 10],
            "near-copies": [0, 0, 0],
            "features: of real": [1, 0.9, 1.1],
            "pixels: of real": [1, 1.2, 1.1],
        }
    )
    text = own.copies(table)
    assert text.startswith("None of the 20 generated images is a near-copy") and "No set" in text
    table.loc[1, "pixels: of real"], table.loc[2, "near-copies"] = 0.8, 3
    text = own.copies(table)
    assert text.startswith("Near-copies of images of G: 3 of 10 of b.")
    assert text.endswith("both in features and in pixels: a.")


def test_nearest_images_and_noises_are_measured():
    closest = {"real": (np.array([1.0, 2, 3]), None), "a": (np.array([0.5, 4]), None)}
    assert "a 25%; real S-test images 50%." in own.nearest(closest, ["a"])
    table = pd.DataFrame({"in features": [2.0, 1], "in pixels": [4.0, 1]})
    assert "differ by 50% in features and 25% in pixels" in own.diversity(table)
    parts = np.zeros((2, 2, 4, 4, 3), np.uint8)
    parts[1, 0] = 255
    assert "mask 2 differ most" in own.noises(parts) and "mask 1 least (0.000)" in own.noises(parts)


@pytest.mark.parametrize("copied, said", [(0, "no near-copy"), (1, "1 near-copy"), (2, "2 near-")])
def test_the_answer_of_notebook_05_is_four_sentences(copied, said):
    names = ["real", "base", "controlnet", "pix2pixhd"]
    summary = pd.DataFrame(
        [
            {"images": i, "masks": m, "mean": 0.5}
            for i in names
            for m in ("S-test", "training pairs")
        ]
    )
    as_sets = sets(real=0.0, base=0.4, controlnet=0.1, pix2pixhd=0.2)
    memorised = pd.DataFrame({"near-copies": [0, copied]})
    text = own.answer(TABLE1, summary, as_sets, memorised, pd.DataFrame(columns=["claim"]))
    assert count_sentences(text) == MOST_SENTENCES and said in text
    assert text.endswith("This run can test none of these claims.")
