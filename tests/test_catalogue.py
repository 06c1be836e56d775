"""Files and labels by id: the user's own folders, and the ISIC tables."""

import cv2
import numpy as np
import pandas as pd
import pytest

from lesionlib.data import catalogue, phantom
from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, unescaped, write_csv

REAL_TABLES = ROOT.parent / "shared" / "data" / "metadata"


@pytest.fixture
def folders(tmp_path):
    """24 image-mask pairs with a table, in two folders."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(24):
        cv2.imwrite(str(tmp_path / "images" / f"a{i:02d}.jpg"), np.full((20, 30, 3), i, np.uint8))
        suffix = "_segmentation" if i % 2 else ""
        cv2.imwrite(str(tmp_path / "masks" / f"a{i:02d}{suffix}.png"), np.eye(20, 30) * 255)
    pd.DataFrame(
        {
            "image_id": [f"a{i:02d}" for i in range(24)],
            "diagnosis": ["nevus", "Melanoma", ""] * 8,
            "streaks": [1, 0, ""] * 8,
            "anatom_site": "head/neck",
            "age_approx": ["55.0", "unknown", "30"] * 8,
        }
    ).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def read(folder, table="labels.csv"):
    return catalogue.read_folders(
        folder / "images", folder / "masks", folder / table if table else ""
    )


def test_folders_are_joined_by_stem_with_or_without_suffix(folders):
    found = read(folders)
    table = found.table
    assert len(table) == 24 and (table["mask"] != "").all() and found.orphans.empty
    assert table["diagnosis"].tolist()[:3] == ["nevus", "melanoma", ""]
    assert table["streaks"].tolist()[:2] == [1, 0] and np.isnan(table["streaks"][2])
    assert table["site"].eq("head/neck").all() and table["age"].tolist()[:3] == ["55", "", "30"]


def test_table_is_optional(folders):
    table = read(folders, None).table
    assert len(table) == 24 and table["diagnosis"].eq("").all() and table["streaks"].isna().all()


def test_what_belongs_to_no_image_is_listed(folders):
    cv2.imwrite(str(folders / "images" / "a03.png"), np.zeros((20, 30, 3), np.uint8))
    cv2.imwrite(str(folders / "masks" / "b99.png"), np.zeros((20, 30), np.uint8))
    with open(folders / "labels.csv", "a") as file:
        file.write("c77,nevus,0,,\n")
    found = read(folders)
    listed = found.orphans.set_index("id")["reason"].to_dict()
    assert set(listed) == {"a03", "b99", "c77"} and len(found.table) == 24
    assert "second file" in listed["a03"] and "without image" in listed["b99"]
    assert found.table.set_index("id").loc["a03", "image"].endswith("a03.jpg")


def test_an_id_stated_twice_differently_is_reported_and_left_empty(folders):
    with open(folders / "labels.csv", "a") as file:
        file.write("a00,melanoma,1,head/neck,55\na04,melanoma,0,head/neck,\n")
    found = read(folders)
    clash = found.disagreements.set_index("id")
    assert list(clash.index) == ["a00"] and clash.loc["a00", "values"] == "nevus | melanoma"
    row = found.table.set_index("id").loc["a00"]
    assert row["diagnosis"] == "" and row["streaks"] == 1 and row["site"] == "head/neck"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda f: (f / "labels.csv").unlink(), "does not exist"),
        (lambda f: (f / "labels.csv").write_text(""), "not a readable CSV"),
        (lambda f: (f / "labels.csv").write_text("word\nx\n"), "no column 'id'"),
        (lambda f: (f / "labels.csv").write_text("id\nx\n"), "none of its 1 ids is the name"),
        (lambda f: (f / "labels.csv").write_text("id,diagnosis\na00,freckle\n"), "unknown diagn"),
        (lambda f: (f / "images").rename(f / "elsewhere"), "the folder does not exist"),
        (lambda f: [p.unlink() for p in (f / "masks").iterdir()], "no image files"),
    ],
)
def test_wrong_tables_and_folders_are_named(folders, change, said):
    change(folders)
    with pytest.raises(InputError, match=said):
        read(folders)


@pytest.mark.parametrize("cell", ['=HYPERLINK("http://x")', "@SUM(1)", "+cmd|' /C calc'!A0"])
def test_a_malicious_cell_is_kept_and_written_as_text(folders, cell):
    labels = pd.DataFrame({"id": ["a00", "a01"], "site": ["back", cell], "note": ["- x", cell]})
    labels.to_csv(folders / "labels.csv", index=False)
    table = read(folders).table
    assert table["site"].tolist()[:2] == ["back", cell] and "note" not in table
    write_csv(folders / "out.csv", table)
    written = pd.read_csv(folders / "out.csv", dtype=str, keep_default_na=False)
    assert written["site"].tolist()[:2] == ["back", "'" + cell]
    assert unescaped(written)["site"].tolist()[:2] == ["back", cell]


def test_an_endless_cell_is_refused_if_it_would_be_used(folders):
    for column, refused in (("site", True), ("note", False)):
        labels = pd.DataFrame({"id": ["a00", "a01"], column: ["back", "x" * 10_000_000]})
        labels.to_csv(folders / "labels.csv", index=False)
        if refused:
            with pytest.raises(
                InputError, match="line 3, column 'site': it has more than"
            ) as error:
                read(folders)
            assert len(str(error.value)) < 1000
        else:
            assert "columns that are not used: note" in "".join(read(folders).notes)


def test_isic_layout_is_joined_without_the_downsampled_suffix(tmp_path):
    phantom.write_dataset(tmp_path, 30, 64, seed=1, workers=1)
    found = catalogue.read_isic(tmp_path)
    table = found.table.set_index("id")
    truth = pd.read_csv(tmp_path / "ISIC_2019_Training_GroundTruth.csv").set_index("image")
    assert truth.index.str.endswith("_downsampled").any()
    truth.index = truth.index.str.removesuffix("_downsampled")
    names = {"NV": "nevus", "MEL": "melanoma", "BKL": "benign keratosis"}
    expected = truth[list(names)].idxmax(axis=1).map(names)
    assert (table["diagnosis"] == expected.reindex(table.index)).all()
    assert table["pigment_network"].notna().all() and found.disagreements.empty


def test_contradicting_years_are_reported_and_the_label_is_left_empty(tmp_path):
    phantom.write_dataset(tmp_path, 24, 64, seed=1, workers=1)
    path = tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv"
    table = pd.read_csv(path)
    table.loc[0, ["melanoma", "seborrheic_keratosis"]] = [1 - table.loc[0, "melanoma"], 0.0]
    table.to_csv(path, index=False)
    found = catalogue.read_isic(tmp_path)
    name = table.loc[0, "image_id"]
    clash = found.disagreements.set_index("id")
    assert list(clash.index) == [name] and clash.loc[name, "sources"] == "2019 | 2017"
    assert found.table.set_index("id").loc[name, "diagnosis"] == ""
    counts = found.joined.set_index("fact")["images"]
    assert counts["diagnosis unknown"] == 1 and counts["labels on which sources disagree"] == 1


@pytest.mark.skipif(not REAL_TABLES.is_dir(), reason="needs the real ISIC tables")
def test_the_real_tables_give_the_known_counts():
    labels, clashes, joined = catalogue.read_isic_labels(REAL_TABLES)
    counts = joined.set_index("fact")["images"]
    assert counts["ids of 2018 Task 1-2"] == 2594 and counts["of these in 2019"] == 2593
    assert counts["named …_downsampled there"] == 1821
    assert [counts[f"2019 says {d}"] for d in ("nevus", "melanoma", "benign keratosis")] == [
        1866,
        519,
        208,
    ]
    assert [counts[f"attribute: {a}"] for a in ATTRIBUTES] == [1523, 190, 100, 682, 603]
    assert counts["no attribute"] == 514 and clashes.empty
    assert [counts[k] for k in ("age known", "sex known", "site known")] == [2299, 2343, 1931]
    assert counts["lesion_id known"] == 708 and counts["lesion_id with several images"] == 12


def test_wishes_are_labels_with_weights(tmp_path):
    path = tmp_path / "wishes.csv"
    path.write_text("diagnosis,streaks,weight\nMEL,1,3\nnevus,,1\n")
    wishes = catalogue.read_prompt_labels(path)
    assert wishes["diagnosis"].tolist() == ["melanoma", "nevus"]
    assert wishes["streaks"].tolist() == [1, 0] and wishes["globules"].tolist() == [0, 0]
    for text, said in [
        ("diagnosis,strieks\nMEL,1\n", "unknown column 'strieks'"),
        ("streaks\n1\n", "no column 'diagnosis'"),
        ("diagnosis\nfreckle\n", "unknown diagnosis 'freckle'"),
        ("diagnosis,weight\nMEL,0\n", "weights must be positive"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            catalogue.read_prompt_labels(path)


def test_the_state_of_pairs_covers_what_lies_beside_them(tmp_path):
    for name in ("images", "masks", "generated"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"1")
    states = [catalogue.pairs_state(tmp_path)]
    for changed in ("masks/a.png", "generated/a.png", "trained_on.csv"):
        (tmp_path / changed).write_bytes(b"other")
        states.append(catalogue.pairs_state(tmp_path))
    assert len(set(states)) == 4
    apart = f"{tmp_path / 'images'}:{tmp_path / 'masks'}"
    before = catalogue.pairs_state(apart)
    (tmp_path / "images" / "b.png").write_bytes(b"1")
    assert catalogue.pairs_state(apart) != before
