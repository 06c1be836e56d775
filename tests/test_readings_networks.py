"""Sentences of notebook 06, on made-up tables of every outcome."""

import numpy as np
import pandas as pd
import pytest
from prose import MOST_SENTENCES, count_sentences

from lesionlib.evaluation import claims
from lesionlib.report import readings_networks as own

NAN, INF = np.nan, np.inf


def table(rows, columns):
    return pd.DataFrame(rows, columns=columns.split())


def test_plateaus_decide_the_length_of_trainings():
    columns = "network steps plateau schedule"
    found = table([("unet", 60, 20, "plateau"), ("dcsaunet", 60, NAN, "plateau")], columns)
    first, second = own.plateaus(found, 60)
    assert first.endswith("S* = 20, so that a training on S-train alone has 30 steps.")
    assert "no plateau within 60 steps" in second and second.endswith("has 60 steps.")
    assert own.plateaus(found[:0], 60) == ["No training among these cells looks for a plateau."]
    assert own.unfinished(found).startswith("Only trainings that look")
    other = table([("unet", 60, 20, "steps"), ("unet", 60, NAN, "epochs")], columns)
    text = own.unfinished(pd.concat([found, other]))
    assert text.startswith("Of 2 trainings, 1 reached their plateau; 1 did not (1 under equal ep")
    assert own.unfinished(other[:1]) == "Of 1 training, 1 reached their plateau."


def arms(*rows):
    found = table(rows, "network schedule method dice_mean dice_sd share")
    return found


def test_table_2_is_read_as_a_range_and_no_row_is_called_best():
    rows = arms(
        ("unet", "steps", "real", 0.8, 0.01, 100),
        ("unet", "epochs", "real", 0.8, 0.01, 100),
        ("unet", "steps", "controlnet", 0.7, 0.03, 100),
        ("unet", "steps", "gan", 0.9, 0.02, 100),
        ("unet", "steps", "real_pairs", 0.95, 0.02, 100),
        ("unet", "steps", "real", 0.1, 0.02, 25),
    )
    assert own.table2(rows) == [
        "U-Net: S-train alone reaches Dice 0.800; with synthetic pairs (2 rows) it reaches 0.700 "
        "to 0.900, with standard deviations over seeds of up to 0.030."
    ]
    once = own.table2(rows[:3].assign(dice_sd=NAN))
    assert once == [
        "U-Net: S-train alone reaches Dice 0.800; with synthetic pairs (1 row) it reaches 0.700."
    ]
    assert own.table2(rows[2:3]) == [  # a share of the grid
        "U-Net: with synthetic pairs (1 row) it reaches 0.700, with standard deviations over seeds "
        "of up to 0.030."
    ]
    assert own.table2(rows[4:]) == ["No training on S-train is among these cells."]


def test_measures_are_ranked_against_dice():
    measures = "dice_mean iou iou65 hd95 nsd brier ece"
    rows = table([(k, k, k, -k, k, -k, (k - 2) ** 2) for k in (1, 2, 3, 4)], measures)
    text = own.measures(rows)
    assert "`iou` +1.00" in text and "`hd95` -1.00" in text and "`ece` orders" in text
    assert own.measures(rows[:2]).startswith("There are too few different rows")
    assert own.measures(rows.assign(dice_mean=0.5)) == own.measures(rows[:2])


def compared(*rows):
    names = "method mean difference low high p_holm"
    found = table(rows, names).assign(network="unet", schedule="steps", share=100, detectable=0.03)
    found["trained on"] = found["method"]
    return found.assign(mean_low=found["mean"] - 0.05, mean_high=found["mean"] + 0.05)


def test_differences_are_counted_and_named_only_with_a_small_p():
    rows = [("real", 0.8, NAN, NAN, NAN, NAN), ("a", 0.81, 0.01, -0.1, 0.1, 1)]
    wide, after = own.differences(compared(*rows))
    assert "Intervals above zero: 0 of 1; below it: 0; containing it: 1." in wide
    assert after == "After Holm's correction no difference is left with p below 0.05."
    rows += [("b", 0.9, 0.1, 0.05, 0.2, 0.01), ("c", 0.7, -0.1, -0.2, -0.05, 0.2)]
    wide, after = own.differences(compared(*rows))
    assert "Intervals above zero: 1 of 3; below it: 1; containing it: 1." in wide
    assert after.endswith("U-Net, b (equal steps): +0.100 (+0.050 to +0.200).")
    assert own.differences(pd.DataFrame()) == own.differences(compared(rows[0]))
    assert own.differences(pd.DataFrame({"mean": [0.8]})) == own.differences(pd.DataFrame())
    assert own.added(compared(*rows), ["a", "b", "c"]).startswith(
        "Within the grey interval of S-train alone: 1 of 3 "
    )


def room(*enough):
    rows = [("s", 0.01 * (i + 1), one) for i, one in enumerate(enough)]
    return table(rows, "sentence difference enough")


@pytest.mark.parametrize(
    "enough, said",
    [
        ((True, True), "shown everywhere"),
        ((True, False), "in 1 of 2 cases; in the others, no claim"),
        ((False, False), "shown nowhere: no claim"),
        ((), "Headroom was not measured: no claim"),
    ],
)
def test_headroom_decides_what_may_be_judged(enough, said):
    assert said in own.headroom(room(*enough))[-1]
    assert own.harder(room(*enough))[0].startswith("s" if enough else "No harder half")


def test_the_worth_is_counted_by_its_interval():
    rows = table([(1, INF), (-INF, -1), (-INF, INF), (-3, 4), (-INF, -1e-15)], "low high")
    text = own.worths(rows)
    assert "above zero (worth real pairs): 1 of 5; below it (costing some): 1; undec" in text
    assert "undecided: 3." in text and text.endswith("uncertain there: 4.")
    assert own.worths(rows[:0]).startswith("The worth is not measured")


def scores(pairs, dice, share):
    rows = pd.DataFrame({"id": list("abc"), "dice": dice, "pairs": pairs, "share": share})
    rows = rows.assign(network="unet", schedule="steps", method="real", amount=0)
    return pd.concat([rows.assign(seed=seed, generator="first") for seed in (0, 1)])


@pytest.mark.parametrize(
    "last, said", [(0.9, "to 0.900, rising at"), (0.3, "to 0.300, not rising")]
)
def test_the_curve_of_real_pairs_may_rise_or_not(last, said):
    images = pd.concat([scores(10, 0.5, 50), scores(20, last, 100)])
    text = own.curve(images, "unet", "steps")
    assert text.startswith("U-Net: from 10 to 20 real pairs") and said in text


def assessed(verdict="inconclusive", low=0.01, schedule="steps", against="real 0", **other):
    row = {"claim": f"A ({schedule})", "verdict": verdict, "insensitive": "", "low": low}
    row |= {"difference": low + 0.01, "high": low + 0.02, "p_holm": 0.2, "seeds": 2}
    row |= {"detectable": 0.03, "network": "unet", "arm": "controlnet 9", "against": against}
    return pd.DataFrame([row | {"schedule": schedule, "share": 100} | other])


def test_controls_say_whether_wrong_masks_were_seen_to_harm():
    wrong = {"against": "controlnet_shuffled 9"}
    lines = own.controls(assessed(low=0.05, **wrong))
    assert lines[-1].endswith(
        "difference +0.060 (+0.050 to +0.070), whose interval lies above zero."
    )
    assert own.controls(assessed(low=-0.05, **wrong))[-1].endswith("does not lie above zero.")
    assert len(own.controls(assessed())) == 1
    nothing = pd.DataFrame(columns=["claim", "verdict", "sentence"])
    assert own.controls(nothing) == own.verdicts(nothing)


def test_no_subgroup_is_singled_out():
    groups = table([(5, 0.1, 0.2), (1, NAN, NAN), (9, -0.1, 0.1)], "n low high")
    text = own.subgroups(groups)
    assert text.startswith(
        "Intervals that exclude zero: 1 of 2, where chance alone would give about 0.1"
    )
    assert "the smallest group has 1 image. No group is singled out" in text
    assert own.subgroups(pd.DataFrame()) == "There are no subgroups to compare."


def test_further_test_sets_have_ranges():
    rows = table([("PH2", 0.5), ("PH2", 0.7), ("own", 0.6)], "test dice_mean")
    text = own.external(rows)
    assert "PH2: Dice 0.500 to 0.700; own: Dice 0.600." in text
    assert own.external(rows[:0]) == "No further test set was named."


def both(epochs, steps):
    return pd.concat([assessed(epochs, schedule="epochs"), assessed(steps)])


def test_survival_is_told_once_for_each_conclusion():
    none = claims.survival(both("inconclusive", "inconclusive"))
    assert own.survival(none * 3) == [
        "3 of 3 comparisons under both schedules: not shown to be better under either schedule."
    ]
    first, second = own.survival(none + claims.survival(both("supported", "ruled out")))
    assert first.startswith("1 of 2") and "(U-Net, " not in first
    assert "does not survive equal training (U-Net, controlnet 9 against real 0)." in second
    (open_,) = claims.survival(both("supported", "inconclusive"))  # no evidence is none of absence
    assert open_.endswith("better with equal epochs, not shown with equal optimiser steps.")
    assert own.survival([]) == ["No claim was tested under both schedules."]


@pytest.mark.parametrize("verdict", ["supported", "ruled out", "inconclusive"])
@pytest.mark.parametrize("enough", [(), (True,), (True, False)])
def test_the_answer_of_notebook_06_is_short_and_carries_the_controls(verdict, enough):
    rows, images = both(verdict, "inconclusive"), scores(10, 0.5, 50)
    text = own.answer(rows, room(*enough), images, claims.survival(rows))
    assert text.startswith("Table 2 was tested on 3 images (seeds of each arm: 2). Of 2 claims, ")
    assert count_sentences(text) <= MOST_SENTENCES
    assert ("elsewhere no gain could be judged" in text) == (enough == (True, False))


def test_the_answer_of_notebook_07_stands_beside_the_paper():
    rows = arms(("unet", "steps", "real", 0.8, 0.01, 100), ("unet", "steps", "gan", 0.9, 0.02, 100))
    table1 = table([("controlnet", 9, 0.5)], "method n ssim")
    text = own.beside_paper(table1, rows, assessed("ruled out"), assessed()[:0])
    assert "U-Net 0.800 (paper: 0.861)" in text and "it is 0.900; whether" in text
    assert "one is ruled out" in text and count_sentences(text) == MOST_SENTENCES
