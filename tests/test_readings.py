"""Sentences that read results, on made-up tables of every outcome."""

import numpy as np
import pandas as pd
import pytest
from prose import MOST_SENTENCES, count_sentences

from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.data.split import PARTS
from lesionlib.report import readings

INF = np.inf


def curated(status, repairs=""):
    return pd.DataFrame({"status": status, "repairs": repairs, "split": "G", "diagnosis": "nevus"})


def borders(*groups):
    names = [f"G / S-{name}" for name in ("train", "val", "test")][: len(groups)]
    return pd.DataFrame({"border": names, "groups": groups})


def claim(verdict="inconclusive", insensitive="", difference=0.02, **other):
    row = {"claim": "A", "verdict": verdict, "insensitive": insensitive, "difference": difference}
    row |= {"low": difference - 0.01, "high": difference + 0.01, "p_holm": 0.2, "seeds": 5}
    return pd.DataFrame([row | {"detectable": 0.03} | other])


def test_numbers_and_lists_are_plain_english():
    assert [readings.counted(n, "pair") for n in (0, 1, 1500)] == [
        "no pair",
        "1 pair",
        "1,500 pairs",
    ]
    assert readings.counted(2, "copy", "copies") == "2 copies"
    assert [readings.listed("abc"[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_the_join_says_what_the_suffix_would_lose():
    facts = {"ids of 2018 Task 1-2": 10, "of these in 2019": 9, "named …_downsampled there": 4}
    table = pd.DataFrame({"fact": list(facts), "images": list(facts.values())})
    text = readings.join(table)
    assert "Of 10 images, 9 have a row" in text and "4 of them under a name" in text
    assert readings.join(pd.DataFrame()) == ""


def test_disagreements_repairs_and_unused_inputs_are_counted_or_denied():
    table = pd.DataFrame({"label": ["age", "sex", "age"]})
    assert "on 3 labels, most often on age (2)" in readings.disagreements(table)
    assert readings.disagreements(table[:0]).endswith("on no label.")
    assert "grey, was made in 1 image." in readings.repairs(pd.Series({"grey": 1}))
    assert readings.repairs(pd.Series(dtype=int)) == "No image needed a repair."
    assert "Of 3 files or labels without an image" in readings.orphans(pd.Series({"no mask": 3}))
    assert readings.orphans(pd.Series(dtype=int)).startswith("Every file")


def test_curation_adds_up():
    text = readings.curation(curated(["used", "used", "quarantined"], ["", "grey", ""]), 0)
    assert "Of 3 images, 2 are used (67%), one is repaired, and one is in quarantine." in text
    assert "No file or label had no image." in text
    assert "none is in quarantine" in readings.curation(curated(["used"]), 2)


def test_prompts_and_attributes_tell_how_unequal_they_are():
    text = readings.prompts(pd.Series(["a"] * 8 + ["b", "c"]), 2)
    assert "Of 3 different prompts, the first 2 stand for 90% of the images, and 2 prompts" in text
    flags = pd.DataFrame(0, index=range(4), columns=list(ATTRIBUTES), dtype=object)
    flags.loc[0:2, "globules"], flags.loc[3] = 1, ""
    text = readings.attributes(flags)
    assert (
        text.startswith("Of 3 images with known attributes, 100% show globules") and "0% " in text
    )
    assert readings.attributes(flags[3:]) == "No attribute is known of any image."


def test_near_duplicates_are_counted_and_the_least_certain_is_named():
    pairs = pd.DataFrame({"a": [0, 0], "b": [1, 2], "same": [0.9, 0.95]})
    assert "2 pairs among 9 images" in readings.near_duplicates(pairs, 9)
    assert "3 images are in such a pair, and the least certain one correlates by 0.90" in (
        readings.near_duplicates(pairs, 9)
    )
    assert readings.near_duplicates(pairs[:0], 9).startswith("No two of the 9 images")
    assert "by 0.90 in the least certain pair and by 0.95" in readings.lowest(pairs["same"])
    assert readings.lowest(pairs["same"][:0]) == "There is no pair to look at."


def test_the_audit_is_a_denial_only_if_nothing_is_divided():
    assert readings.audit(borders(0, 0, 0)).startswith("No lesion")
    text = readings.audit(borders(1, 0, 4))
    assert "5 groups of related images are divided, 4 of them at G / S-test" in text
    assert "1 group of related images is divided" in readings.audit(borders(0, 1))


def test_parts_differ_only_if_a_test_says_so():
    rng = np.random.default_rng(0)
    facts = pd.DataFrame({"area": rng.normal(size=80), "part": np.repeat(PARTS, 20)})
    assert readings.parts(facts).startswith("No difference between the parts is seen (smallest p")
    facts["tone"] = rng.normal(size=80) + 5 * (facts["part"] == "G")
    assert readings.parts(facts).startswith("The parts differ in tone (p ")
    assert readings.parts(facts.assign(area=1.0, tone=2.0)).startswith("There are too few")
    table = facts.groupby("part").median().assign(n=[20, 20, 3, 20])
    text = readings.medians(table)
    assert f"({table['tone'].idxmin()}) to" in text
    assert f"{table['n'].idxmin()} has 3 images only" in text


def test_the_sizes_of_a_study_are_those_of_its_parts():
    text = readings.split(np.repeat(PARTS, [6, 2, 1, 1]))
    assert "G 6 (60%), S-train 2 (20%), S-val 1 (10%) and S-test 1 (10%)" in text
    text = readings.workflow({"G": 6, "S-train": 2, "S-val": 1, "S-test": 1}, 3)
    assert "see 60% of the 10 images; the 3 synthetic masks are 1.50 times" in text
    assert "nevus 1 (50%)" in readings.examples(pd.DataFrame({"diagnosis": ["nevus", ""]}))
    tones = pd.Series([10.0, 30.0, np.nan])
    assert readings.skin(tones, 28).startswith("1 of 2 images have an angle below 28 degrees")


def test_the_answer_of_notebook_01_is_short():
    table = curated(["used", "used", "quarantined"])
    text = readings.data_answer(table, 0.5, 1, borders(0))
    assert "2 of 3 images are used" in text and "50% have a diagnosis" in text
    assert "1 pair of images shows the same picture." in text
    assert count_sentences(text) <= MOST_SENTENCES


def test_examples_stand_beside_all_images():
    quality = pd.DataFrame(
        {"method": "controlnet", "id": list("abcd"), "ssim": [0.1, 0.2, 0.6, 0.7]}
    )
    text = readings.figure3(quality, ["a", "b"])
    assert "ControlNet 0.10 to 0.20 (mean over all 4: 0.40)" in text
    assert "2 pairs have 2 different prompts; of 1 prompt" in readings.figure1(["a", "b"], 1)
    assert readings.external_sets([]).startswith("This run has no")
    assert "gan" in readings.external_sets(["gan"])


def test_detail_is_a_share_of_the_originals():
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    flat = np.full_like(sharp, 7)
    window = [(slice(0, 8), slice(0, 8))]
    assert readings.detail(flat, window) == 0 < readings.detail(sharp, window)
    text = readings.figure4({"original": sharp, "one": sharp, "other": flat}, window)
    assert "one 100% and other 0%" in text


@pytest.mark.parametrize(
    "table, said",
    [
        (claim("supported"), "one is supported, none is ruled out, and none is left open."),
        (claim("ruled out"), "none is supported, one is ruled out, and none is left open."),
        (claim(), "none is ruled out, and 1 remains undecided (1: the interval is too wide"),
        (claim(insensitive="headroom not shown: x"), "(1: it was not shown that even real pairs"),
        (claim(insensitive="insensitive: x"), "(1: not even masks of other pairs were seen to"),
    ],
)
def test_claims_are_told_by_verdict_and_reason(table, said):
    assert said in readings.outcome({"claims": table})
    assert count_sentences(readings.outcome({"claims": table})) == 1
    lines = readings.verdicts({"claims": table})
    named = [line for line in lines if line.startswith(("Supported: A", "Ruled out: A"))]
    assert len(named) == (table["verdict"][0] != "inconclusive")


def test_a_generator_that_was_trained_once_supports_nothing():
    table = claim("not tested", measure="ssim", seeds=1)
    text = readings.outcome({"image_claims": table})
    assert "none is supported" in text and "1: each generator was trained once" in text
    assert len(readings.verdicts({"image_claims": table})) == 1
    nothing = {"claims": table[:0]}
    assert readings.verdicts(nothing) == ["This run can test none of these claims."]
