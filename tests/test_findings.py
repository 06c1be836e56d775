"""What the report says of a run: claims, abstract, its setting beside the paper's, the plot."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from lesionlib.engine import settings as config
from lesionlib.engine.files import write_csv
from lesionlib.evaluation import claims
from lesionlib.evaluation.paper import display_name
from lesionlib.report import findings, forest

matplotlib.use("agg")
COUNTS = {"G": 1321, "S-train": 580, "S-val": 83, "S-test": 166}


def claim(text, verdict, difference=0.02, insensitive="", schedule="steps", **other):
    row = {"claim": f"{text} (equal {schedule})", "schedule": schedule, "share": 100}
    row |= {"difference": difference, "low": difference - 0.01, "high": difference + 0.01}
    row |= {"p_holm": 0.2, "detectable": 0.03, "seeds": 5, "insensitive": insensitive}
    return row | {"verdict": verdict} | other


@pytest.fixture
def folder(tmp_path):
    """Tables of a run with every verdict and every reason."""
    tables = {
        "claims": [
            claim("A", "supported"),
            claim("B", "ruled out", -0.05),
            claim(
                "C", "inconclusive", insensitive="headroom not shown: 9 pairs of G add 0.001 here"
            ),
            claim("C", "inconclusive", schedule="epochs"),
            claim("D", "inconclusive", insensitive="its headroom was not measured"),
        ],
        "controls": [claim("E", "ruled out", -0.4)],
        "image_claims": [claim("F", "not tested", 3.0, seeds=1, measure="psnr_255", p_holm=np.nan)],
        "mask_fidelity": [{"images": "real", "dice": 0.8}, {"images": "controlnet", "dice": 0.7}],
        "table1": [{"method": "pix2pixhd", "remark": "no VGG loss"}],
        "table2": [
            {"network": "unet", "method": "real", "share": 100, "steps": 370, "seeds": 5}
            | {"generators": 1, "unfinished": 2},
            {"network": "unet", "method": "controlnet", "share": 100, "steps": 370, "seeds": 3}
            | {"generators": 2, "unfinished": 0},
        ],
    }
    for name, rows in tables.items():
        write_csv(tmp_path / "tables" / f"{name}.csv", pd.DataFrame(rows))
    return tmp_path


@pytest.fixture
def facts():
    return {"settings": config.load("isic").flat(), "images": COUNTS}


def test_claims_and_controls_are_one_table_with_verdicts_that_the_controls_carry(folder):
    rows = findings.tested(folder).set_index("claim")
    assert rows["kind"].tolist() == ["Table 2"] * 5 + ["controls", "Table 1"]
    assert rows.loc["D (equal steps)", "verdict"] == "inconclusive"
    assert rows.loc["D (equal steps)", "insensitive"] == "its headroom was not measured"
    once = rows.loc["F (equal steps)"]
    assert once["verdict"] == "not tested" and np.isnan(once["p_holm"])
    assert once["unit"] == "PSNR (dB)" and rows["unit"].iloc[0] == "Dice"


def test_the_abstract_is_three_sentences_found_ruled_out_and_untold(folder, facts):
    found, ruled_out, untold = findings.abstract(folder, facts)
    assert "0.800 for real images, 0.700 for ControlNet" in found
    assert "6 claims" in found
    assert "one is supported: A (equal steps), +0.020 (+0.010 to +0.030), while mask" in found
    assert ruled_out.startswith("One is ruled out") and "B (equal steps), -0.050" in ruled_out
    assert untold.startswith("4 remain undecided (")
    for reason in (
        "1: it was not shown that even real pairs of G",
        "1: what real pairs of G would have added was not measured",
        "1: each generator was trained once",
        "1: the interval is too wide, would have shown 0.030 Dice",
    ):
        assert reason in untold
    assert "E (" not in found + ruled_out + untold  # a control is no claim of the paper


def test_an_undecided_claim_that_points_the_other_way_is_named():
    why = "headroom not shown: 9 pairs of G add 0.001 here"
    rows = [claim("A", "inconclusive", x, insensitive=why) for x in (-0.05, -0.005, 0.02)]
    rows.append(claim("B", "not tested", -0.5))
    found = findings.untold(findings.assessed({"claims": pd.DataFrame(rows)}))
    assert "; in 1 the interval is below zero: A (equal steps), -0.050 (-0.060 to -0.040))" in found


def test_one_claim_is_no_claims():
    assert [findings.claims_of(pd.DataFrame(index=range(n))) for n in (1, 2)] == [
        "1 claim",
        "2 claims",
    ]


def test_each_training_of_a_generator_counts_in_its_mask_fidelity(folder, facts):
    rows = {"real": 0.8, "controlnet": 0.7, "controlnet_seed1": 0.5, "pix2pixhd_plus_seed2": 0.6}
    table = pd.DataFrame({"images": rows.keys(), "dice": rows.values()})
    write_csv(folder / "tables" / "mask_fidelity.csv", table)
    assert "0.600 for ControlNet, 0.600 for Pix2PixHD+" in findings.abstract(folder, facts)[0]
    assert display_name("pix2pixhd_plus_seed2") == "Pix2PixHD+ (ours), seed 2"


def test_at_most_three_claims_are_named(folder, facts):
    rows = [claim(name, "supported") for name in "VWXYZ"]
    write_csv(folder / "tables" / "claims.csv", pd.DataFrame(rows))
    found = findings.abstract(folder, facts)[0]
    assert "5 are supported: V" in found and "Y (" not in found and "; and 2 more, while" in found


def test_the_setting_stands_beside_that_of_the_paper(folder, facts):
    f = facts["settings"]
    rows = findings.against_paper(folder, facts).set_index("")
    own, theirs = rows["this run"], rows["the paper"]
    assert own["synthetic pairs ÷ S-train"] == "1.43"
    assert theirs["synthetic pairs ÷ S-train"] == "1.43, 4.29, 7.14"
    assert own["S-test"] == "166" and own["resolution"] == "generators 64 px, networks 64 px"
    base, control = (
        f["base_steps"] * f["base_batch"],
        f["controlnet_steps"] * f["controlnet_batch"],
    )
    seen = f"base {base:,}, ControlNet {control:,}, Pix2PixHD {base + control:,}"
    assert own["images seen in training"].startswith(seen)
    assert own["training of the networks"].startswith(
        "epochs: U-Net 10; plateau reached by 9 of 11 in Table 2"
    )
    assert own["seeds"] == "networks 3 to 5, generators 1" and theirs["seeds"] == "1"
    assert own["loss of Pix2PixHD"] == "no VGG loss"
    facts["settings"] = f | {"controlnet_model": "owner/name"}
    rows = findings.against_paper(folder, facts).set_index("")
    seen = rows["this run"]["images seen in training"]
    assert seen.startswith("ControlNet was given, trained elsewhere, base ") and "Pix" in seen


def test_the_plot_shows_each_interval_in_the_colour_of_its_verdict(folder):
    rows = findings.tested(folder)
    fig = forest.draw(rows)
    dice, psnr = fig.axes
    drawn = {
        (line.get_color(), round(float(np.mean(line.get_xdata())), 3))
        for line in dice.lines
        if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.6
    }
    assert (claims.VERDICTS["supported"], 0.02) in drawn
    assert (claims.VERDICTS["ruled out"], -0.05) in drawn
    assert psnr.get_xlabel() == "difference of PSNR (dB) in favour of the claim"
    texts = [text.get_text() for text in dice.texts]
    assert texts.count("C") == 1 and "Control: E" in texts and texts.count("inconclusive") == 3
    low, high = dice.get_xlim()
    assert low < -0.4 and high > 0.02  # every difference is on the axis
    assert forest.alternative_text(rows).endswith(
        "1 supported, 2 ruled out, 3 inconclusive, 1 not tested."
    )


def test_labels_of_the_plot_neither_overlap_nor_leave_it(folder):
    long = (
        "ControlNet pairs of high mask fidelity help the U-Net with an ImageNet encoder much more"
    )
    rows = [claim(f"{n} {long}", "inconclusive", share=25) for n in range(6)]
    write_csv(folder / "tables" / "claims.csv", pd.DataFrame(rows))
    fig = forest.draw(findings.tested(folder))
    fig.canvas.draw()
    for axis in fig.axes:
        boxes = [text.get_window_extent() for text in [*axis.texts, axis.xaxis.label]]
        assert all(fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 for box in boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_plot_is_the_same_bytes_when_it_is_written_again(folder, tmp_path):
    for name in ("a", "b"):
        forest.write(findings.tested(folder), tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_small_p_is_said_to_be_small():
    assert [claims.p_text(p) for p in (np.nan, 1e-9, 0.0123, 1.0)] == ["", "< 0.001", "0.012", "1"]
