"""Splits keep together what belongs together, and near-duplicates are found."""

import cv2
import numpy as np
import pandas as pd
import pytest

from lesionlib.data import duplicates, phantom, split
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT

PUBLISHED = ROOT / "config" / "isic2018_split.csv"
REAL = ROOT.parent / "shared" / "data"


def lesions(names):
    return pd.DataFrame({"id": [f"i{k}" for k in range(len(names))], "lesion_id": names})


NONE = pd.DataFrame(columns=duplicates.PAIRS)


def pairs(*rows):
    return pd.DataFrame([(*row, 1.0) for row in rows], columns=duplicates.PAIRS)


def test_both_splits_have_the_papers_sizes():
    wanted = {"G": 1594, "S-train": 700, "S-val": 100, "S-test": 200}
    groups = np.arange(2594)
    groups[:40] = groups[0]
    for names in (split.uniform(2594, 0.6145, 0), split.grouped(groups, 0.6145, 0)):
        assert pd.Series(names).value_counts().to_dict() == wanted
    assert len(set(split.grouped(groups, 0.6145, 0)[:40])) == 1
    assert (split.uniform(99, 0.6, 0) == split.uniform(99, 0.6, 0)).all()
    assert (split.grouped(np.arange(99), 0.6, 0) != split.grouped(np.arange(99), 0.6, 1)).any()


def test_groups_join_lesions_and_pictures_transitively():
    table = lesions(["A", "", "A", "B", "", "", "B"])
    found = duplicates.groups(table, pairs((2, 4), (4, 3)))
    same = [set(np.flatnonzero(found == g)) for g in np.unique(found)]
    assert sorted(map(sorted, same)) == [[0, 2, 3, 4, 6], [1], [5]]


def test_audit_counts_what_crosses_by_hand():
    table = lesions(["A", "A", "", "B", "B", ""])
    names = np.array(["G", "S-test", "G", "S-train", "S-train", "S-val"])
    double = pairs((2, 5), (3, 4))
    found = split.audit(names, table, double, duplicates.groups(table, double)).set_index("border")
    assert found.loc["G / S-test"].tolist() == [1, 0, 1]
    assert found.loc["G / S-val"].tolist() == [0, 1, 1]
    assert found["groups"].sum() == 2
    split.check("paper", found.reset_index())
    with pytest.raises(InputError, match="2 groups .* G / S-val, G / S-test"):
        split.check("grouped", found.reset_index())


@pytest.mark.parametrize("seed", range(5))
def test_grouped_never_crosses_where_uniform_does(seed):
    table = lesions([f"L{k // 4}" for k in range(100)])
    group = duplicates.groups(table, NONE)
    crossing = split.audit(split.grouped(group, 0.6, seed), table, NONE, group)
    assert crossing["groups"].sum() == crossing["lesions"].sum() == 0
    uniform = split.audit(split.uniform(100, 0.6, seed), table, NONE, group)
    assert uniform["groups"].sum() > 10


def test_sizes_are_targets_and_groups_stay_together():
    table = lesions([f"L{k // 2}" for k in range(200)])
    group = duplicates.groups(table, NONE)
    names = split.make("grouped", table, group, 0.6145, 0)
    assert pd.DataFrame({"g": group, "n": names}).groupby("g")["n"].nunique().max() == 1
    counts = pd.Series(names).value_counts()
    assert all(abs(counts[part] - n) <= 1 for part, n in split.sizes(200, 0.6145).items())
    assert "124 in G (123)" in split.reached(names, "grouped", 0.6145)
    assert split.reached(split.uniform(200, 0.6145, 0), "paper", 0.6145) == ""


def test_only_a_part_without_any_group_is_an_error():
    names = split.grouped(np.repeat(range(5), 10), 0.6, 0)
    assert set(names) == set(split.PARTS)
    with pytest.raises(InputError, match="S-test would be empty: there are only 3 groups"):
        split.grouped(np.repeat([0, 1, 2], 10), 0.5, 0)


def test_images_of_one_patient_stay_together():
    table = lesions(["A", "B", "", "A"]).assign(patient_id=["p", "p", "q", ""])
    found = duplicates.groups(table, NONE)
    assert len(set(found[[0, 1, 3]])) == 1 and found[2] != found[0]


def test_the_official_parts_are_kept_and_the_training_set_is_divided(capsys):
    parts = ["train"] * 100 + ["val"] * 5 + ["test"] * 20
    table = lesions([f"L{k // 2}" for k in range(125)]).assign(official=parts)
    group = duplicates.groups(table, NONE)
    names = split.make("official", table, group, 0.6, 0)
    assert set(names[100:105]) == {"S-val"} and set(names[105:]) == {"S-test"}
    assert pd.Series(names[:100]).value_counts().to_dict() == {"G": 60, "S-train": 40}
    split.check("official", split.audit(names, table, NONE, group))
    assert "WARNING: the official split divides: 1 groups" in capsys.readouterr().out  # 104, 105
    without = table[table["official"] != "val"]
    names = split.make("official", without, np.arange(120), 0.6, 0)
    assert (names[:100] == "S-val").sum() == 4 and set(names[100:]) == {"S-test"}
    with pytest.raises(InputError, match="training and test sets of the source are not both"):
        split.make("official", table.drop(columns="official"), group, 0.6, 0)


def test_a_split_from_a_file(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("id,split\nb,G\na,S-test\nc,S-val\nd,S-train\n")
    assert split.from_file(path, ["a", "b", "c", "d"]).tolist() == [
        "S-test",
        "G",
        "S-val",
        "S-train",
    ]
    for ids, text, said in [
        (["a", "x"], None, "no part for 1 images, x"),
        (["a", "b"], None, "no image is in S-train"),
        (["a"], "id,split\na,test\n", "unknown part 'test'"),
        (["a"], "id\na\n", "no columns"),
        (["a"], "id,split\na,G\nb,G\nb.jpg,S-test\n", "'b' is in more than one part: G, S-test"),
    ]:
        if text:
            path.write_text(text)
        with pytest.raises(InputError, match=said):
            split.from_file(path, ids)


@pytest.fixture(scope="module")
def pictures():
    """Forty phantoms of 96 px, all different."""
    return np.stack([phantom.sample(k, 96, seed=5).image for k in range(40)])


def recompressed(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1)


def cropped(image):
    return cv2.resize(np.ascontiguousarray(image[3:-3, 2:-4]), (96, 96))


CHANGES = {
    "none": lambda x: x,
    "mirror": lambda x: x[:, ::-1],
    "quarter turn": lambda x: np.rot90(x),
    "turned and mirrored": lambda x: np.rot90(x, 3)[::-1],
    "recompressed": recompressed,
    "resized": lambda x: cv2.resize(
        cv2.resize(x, (61, 61), interpolation=cv2.INTER_AREA), (96, 96)
    ),
    "recoloured": lambda x: np.clip(x * np.array([0.8, 0.95, 1.1]) + 12, 0, 255).astype(np.uint8),
    "mirrored and recompressed": lambda x: recompressed(np.ascontiguousarray(x[::-1])),
}


def test_different_pictures_are_no_duplicates(pictures):
    assert duplicates.near_duplicates(pictures).empty


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(pictures, change):
    copies = np.stack([np.ascontiguousarray(CHANGES[change](p)) for p in pictures[:8]])
    found = duplicates.near_duplicates(np.concatenate([pictures, copies]))
    assert set(zip(found["a"], found["b"], strict=True)) == {(k, 40 + k) for k in range(8)}


def test_most_small_crops_are_found(pictures):
    copies = np.stack([cropped(p) for p in pictures[:8]])
    found = duplicates.near_duplicates(np.concatenate([pictures, copies]))
    found = set(zip(found["a"], found["b"], strict=True))
    assert found <= {(k, 40 + k) for k in range(8)} and len(found) >= 7


def test_the_published_split_keeps_its_promises():
    table = pd.read_csv(PUBLISHED)
    counts = table["split"].value_counts().to_dict()
    assert counts == {"G": 1594, "S-train": 700, "S-val": 100, "S-test": 200}
    assert table["id"].is_unique and (table.groupby("group")["split"].nunique() == 1).all()
    same = pd.read_csv(ROOT / "config" / "isic2018_near_duplicates.csv")
    part = table.set_index("id")["split"]
    assert (part[same["id"]].to_numpy() == part[same["same_picture_as"]].to_numpy()).all()


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real images")
def test_all_known_near_duplicates_of_the_real_images_are_found():
    table = pd.read_csv(REAL / "isic.csv", dtype=str, keep_default_na=False)
    known = table[(table["near_duplicate_of"] != "") & (table["has_image256"] == "1")]
    names = sorted(set(known["id"]) | set(table["id"][table["has_image256"] == "1"][:60]))
    images = [cv2.imread(str(REAL / "isic256" / "images" / f"{name}.jpg")) for name in names]
    images = np.stack([cv2.resize(i, (64, 64), interpolation=cv2.INTER_AREA) for i in images])
    found = duplicates.near_duplicates(images)
    found = {frozenset((names[a], names[b])) for a, b in zip(found["a"], found["b"], strict=True)}
    expected = {frozenset(row) for row in known[["id", "near_duplicate_of"]].to_numpy()}
    assert len(expected) == 12 and expected == found


def test_rows_of_a_split_that_are_no_image_are_said(tmp_path, capsys):
    path = tmp_path / "split.csv"
    rows = [("b.JPG", "G"), ("a", "S-test"), ("c", "S-val"), ("d", "S-train"), ("z", "G")]
    pd.DataFrame(rows, columns=["Image_ID", "Split"]).to_csv(path, sep=";", index=False)
    assert split.from_file(path, ["a", "b", "c", "d"]).tolist()[1] == "G"
    assert "WARNING: " in (said := capsys.readouterr().out) and "no image: 1, as z" in said
