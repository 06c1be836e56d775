"""Reading, joining, curating and splitting, with files made here."""

import cv2
import numpy as np
import pandas as pd
import pytest

from lesionlib import data, phantom, prompts
from lesionlib.errors import InputError


@pytest.fixture
def folders(tmp_path):
    """24 image-mask pairs with a table, in two folders."""
    rng = np.random.default_rng(0)
    for i in range(24):
        image = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        mask = np.zeros((20, 30), np.uint8)
        mask[5:15, 8:20] = 255
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"a{i:02d}.jpg"), image)
        suffix = "_segmentation" if i % 2 else ""
        cv2.imwrite(str(tmp_path / "masks" / f"a{i:02d}{suffix}.png"), mask)
    pd.DataFrame({"image_id": [f"a{i:02d}" for i in range(24)],
                  "diagnosis": ["nevus", "melanoma", ""] * 8,
                  "streaks": [1, 0, ""] * 8, "anatom_site": "head/neck"}).to_csv(
        tmp_path / "labels.csv", index=False)
    return tmp_path


def read(folder, table="labels.csv"):
    return data.read_folders(folder / "images", folder / "masks", folder / table if table else "")


def test_folders_are_joined_by_stem_with_or_without_suffix(folders):
    table = read(folders)
    assert len(table) == 24 and (table["mask"] != "").all()
    assert table["diagnosis"].tolist()[:3] == ["nevus", "melanoma", ""]
    assert table["streaks"].tolist()[:2] == [1, 0] and np.isnan(table["streaks"][2])
    assert table["site"].eq("head/neck").all()


def test_table_is_optional(folders):
    assert read(folders, None)["diagnosis"].eq("").all()


def test_curate_squashes_and_averages(folders):
    images, masks, table = data.curate(read(folders), 10)
    assert images.shape == (24, 10, 10, 3) and masks.shape == (24, 10, 10)
    assert set(np.unique(masks)) == {0, 1} and table["status"].eq("used").all()
    # Rows 5-14 of 20, columns 8-19 of 30, blocks of 2 x 3 pixels: rows 3-6 are lesion throughout,
    # rows 2 and 7 by exactly one half (not lesion), of column 2 one third, columns 3-6 all but
    # the last pixel of none (20 = 6 * 3 + 2: two thirds of column 6).
    expected = np.zeros((10, 10), np.uint8)
    expected[3:7, 3:7] = 1
    assert (masks[0] == expected).all()


def damage(folder, kind):
    """Break the pair a03 in one way; returns the file that the message must name."""
    image, mask = folder / "images" / "a03.jpg", folder / "masks" / "a03_segmentation.png"
    if kind == "missing mask":
        mask.unlink()
        return image
    if kind == "truncated image":
        image.write_bytes(image.read_bytes()[:-400])
        return image
    if kind == "not an image":
        image.write_text("hello")
        return image
    if kind == "truncated mask":
        mask.write_bytes(mask.read_bytes()[:-20])
        return mask
    if kind == "empty mask":
        cv2.imwrite(str(mask), np.zeros((20, 30), np.uint8))
        return mask
    cv2.imwrite(str(mask), np.ones((10, 30), np.uint8) * 255)
    return mask


KINDS = {"missing mask": "no mask of the same stem", "truncated image": "corrupt or truncated",
         "not an image": "corrupt or truncated", "truncated mask": "corrupt or truncated",
         "empty mask": "no lesion is left", "other size": "30x10 but its image is 30x20"}


@pytest.mark.parametrize("kind, said", KINDS.items())
def test_a_damaged_pair_is_left_out_and_named(folders, kind, said):
    named = damage(folders, kind)
    images, _, table = data.curate(read(folders), 10)
    row = table.set_index("id").loc["a03"]
    assert len(images) == 23 and row["status"] == "left out"
    assert said in row["reason"] and str(named) in row["reason"] and "Remedy" in row["reason"]
    with pytest.raises(InputError, match=said):
        data.curate(read(folders), 10, bad_inputs="stop")


def test_too_few_pairs_is_an_error(folders):
    with pytest.raises(InputError, match="only 5 usable"):
        data.curate(read(folders).head(5), 10)


@pytest.mark.parametrize("change, said", [
    (lambda f: (f / "labels.csv").unlink(), "does not exist"),
    (lambda f: (f / "labels.csv").write_text("name\nx\n"), "no column 'id'"),
    (lambda f: (f / "labels.csv").write_text("id,diagnosis\na00,naevus\n"), "unknown diagnosis"),
    (lambda f: (f / "images").rename(f / "elsewhere"), "the folder does not exist"),
])
def test_wrong_tables_and_folders_are_named(folders, change, said):
    change(folders)
    with pytest.raises(InputError, match=said):
        read(folders)


def test_isic_layout_is_joined_without_the_downsampled_suffix(tmp_path):
    phantom.write_dataset(tmp_path, 30, 64, seed=1, workers=1)
    table = data.read_isic(tmp_path).set_index("id")
    truth = pd.read_csv(tmp_path / "ISIC_2019_Training_GroundTruth.csv").set_index("image")
    assert truth.index.str.endswith("_downsampled").any()
    truth.index = truth.index.str.removesuffix("_downsampled")
    names = {"NV": "nevus", "MEL": "melanoma", "BKL": "benign keratosis"}
    expected = truth[list(names)].idxmax(axis=1).map(names)
    assert (table["diagnosis"] == expected.reindex(table.index)).all()
    assert table["pigment_network"].notna().all()


def test_contradicting_years_stop_the_run(tmp_path):
    phantom.write_dataset(tmp_path, 24, 64, seed=1, workers=1)
    path = tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv"
    table = pd.read_csv(path)
    table.loc[0, ["melanoma", "seborrheic_keratosis"]] = [1 - table.loc[0, "melanoma"], 0.0]
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match="disagree on the diagnosis"):
        data.read_isic(tmp_path)


def test_split_has_the_papers_sizes():
    names = data.split(2594, 0.6145, seed=0)
    counts = {name: int((names == name).sum()) for name in data.SPLITS}
    assert counts == {"G": 1594, "S-train": 700, "S-val": 100, "S-test": 200}
    assert (names == data.split(2594, 0.6145, seed=0)).all()
    assert (names != data.split(2594, 0.6145, seed=1)).any()


def test_prompts_by_hand():
    assert prompts.prompt("nevus") == "a dermoscopic image of a nevus"
    assert prompts.prompt("", variant="full") == "a dermoscopic image of a skin lesion"
    some = ["pigment_network", "streaks", "globules"]
    assert prompts.prompt("melanoma", some).endswith(
        "a melanoma with pigment network, streaks and globules")
    assert prompts.prompt("melanoma", some, "diagnosis") == "a dermoscopic image of a melanoma"
    assert prompts.prompt("melanoma", some, "empty") == ""


def test_drawn_prompts_depend_on_seed_and_index_alone():
    pool = [f"p{i}" for i in range(9)]
    long = prompts.draw(pool, 20, seed=3)
    assert long[5:9] == prompts.draw(pool[::-1], 4, seed=3, first=5)
    assert long != prompts.draw(pool, 20, seed=4)
