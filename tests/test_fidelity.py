"""Mask fidelity for both kinds of masks, between chance and real images, by hand."""

from types import SimpleNamespace

import pandas as pd
import pytest

from lesionlib.engine.files import write_csv
from lesionlib.evaluation import fidelity
from lesionlib.report import pages


def rows(images, masks, dice, distractors=0, size="small", chance=0.2):
    return pd.DataFrame({"images": images, "masks": masks, "dice": dice}).assign(
        distractors=distractors, size=size, chance=chance
    )


ROWS = pd.concat(
    [
        rows("real", "S-test", [0.9, 1.0]),
        rows("real", "training pairs", [0.8, 0.8]),
        rows("controlnet", "S-test", [0.8, 0.72]),
        rows("controlnet", "training pairs", [0.4, 0.6], [0, 2], ["small", "large"], [0.1, 0.3]),
        rows("clinic", "training pairs", [0.7, 0.8]),
    ]
)


def test_each_kind_is_compared_with_its_own_real_images():
    table = fidelity.table(ROWS).set_index(["images", "masks"])
    whole = table.loc["controlnet", "training pairs"]
    assert whole["n"] == 2 and whole["mean"] == pytest.approx(0.5)
    assert whole[["share_50", "share_70"]].tolist() == [0.5, 0]
    assert whole[["small", "large"]].tolist() == [0.4, 0.6] and pd.isna(whole["medium-sized"])
    assert whole["chance"] == pytest.approx(0.2) and whole["with_distractor"] == 0.5
    assert whole["real"] == pytest.approx(0.8)
    assert whole["of_real"] == pytest.approx(0.625)
    assert table.loc[("controlnet", "S-test"), "of_real"] == pytest.approx(0.8)
    assert (table.loc["real", "of_real"] == 1).all()


def test_every_image_is_a_row_with_the_id_of_its_mask():
    def judge(images, masks):
        return pd.DataFrame({"dice": [float(i == m) for i, m in zip(images, masks, strict=True)]})

    test = SimpleNamespace(masks=[1, 2], table=pd.DataFrame({"id": ["x", "y"]}))
    real = pd.DataFrame({"dice": [0.9, 0.8, 0.7], "images": ["in place", "in place", "moved"]})
    pairs = {"gan": SimpleNamespace(images=[5, 6, 7], masks=[5, 6, 0])}
    rows = fidelity.per_image(judge, real, test, {"gan": [1, 0]}, pairs)
    assert list(rows) == ["id", "images", "masks", "dice"]
    assert rows[rows["images"] == "real"]["id"].tolist() == ["x", "y", "000000"]
    made = rows[rows["images"] == "gan"]
    assert made["masks"].tolist() == ["S-test"] * 2 + ["training pairs"] * 3
    assert made["id"].tolist() == ["x", "y", "000000", "000001", "000002"]
    assert made["dice"].tolist() == [1, 0, 1, 1, 0]


def test_sentences_tell_both_kinds_and_whether_pairs_miss_their_masks():
    one, other = fidelity.sentences(fidelity.table(ROWS))
    assert one.startswith(
        "ControlNet: fidelity 0.760 on the masks of S-test (80% of the 0.950 of real images; "
        "chance 0.200), 0.500 on the masks of the training pairs (62% of the 0.800 of real "
    )
    assert "**50% of its 2 training pairs miss their masks (below 0.5)**" in one
    assert "most where lesions are small (mean 0.400); 50% show another lesion outside." in one
    assert other.startswith("clinic: fidelity 0.750 on the masks of the training pairs")
    assert "**" not in other and "0% of its 2 training pairs miss" in other


def test_a_generator_without_training_pairs_is_named_as_one():
    (sentence,) = fidelity.sentences(fidelity.table(ROWS[ROWS["masks"] == "S-test"]))
    assert sentence.endswith("It has no training pairs.")


def test_the_report_shows_training_pairs_beside_s_test(tmp_path):
    write_csv(tmp_path / "tables" / "mask_fidelity.csv", ROWS.assign(hd95=0.1))
    shown = pages.fidelity_table(tmp_path).set_index("images")
    assert list(shown.index) == ["real images", "ControlNet", "clinic"]
    row = shown.loc["ControlNet"]
    assert row["S-test: Dice"] == "0.760 (0.398 to 1.122)"  # t, with one degree of freedom
    assert row["training pairs: Dice"].startswith("0.500 (")
    assert (
        row["training pairs: at least 0.5"] == row["training pairs: with a distractor"] == "0.500"
    )
    assert shown.loc["clinic", "S-test: Dice"] == ""
