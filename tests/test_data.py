"""The arrays and tables of a run: written once, read by every stage."""

import cv2
import numpy as np
import pandas as pd
import pytest

from lesionlib.data import catalogue, curation, dataset
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json


@pytest.fixture
def saved(tmp_path):
    """A run of 24 pairs, one without mask, one mask without image; returns its folder."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(24):
        image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        mask = np.zeros((40, 60), np.uint8)
        mask[10:30, 16:40] = 255
        cv2.imwrite(str(tmp_path / "images" / f"a{i:02d}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"a{i + (i == 5) * 50:02d}.png"), mask)
    run = tmp_path / "run"
    found = catalogue.read_folders(tmp_path / "images", tmp_path / "masks", "")
    table = curation.curate(found.table, 16, dataset.pixels(run))
    used = table["status"] == "used"
    table.loc[used, "split"] = np.resize(["G", "S-train", "S-val", "S-test"], used.sum())
    dataset.save(run, table.assign(prompt="p"), found.orphans, preset="test", seed=0)
    return run


def test_rows_of_arrays_and_table_correspond(saved):
    study = dataset.load(saved)
    assert study.images.shape == (23, 16, 16, 3) and study.masks.shape == (23, 16, 16)
    assert "a05" not in set(study.table["id"]) and study.table["id"].is_unique
    part = study.part("S-val")
    rows = np.flatnonzero(study.table["split"] == "S-val")
    assert (part.images == study.images[rows]).all()
    assert part.table["id"].tolist() == study.table["id"].iloc[rows].tolist()


def test_nothing_is_lost(saved):
    curated = pd.read_csv(saved / "tables" / "curation.csv")
    quarantine = pd.read_csv(saved / "tables" / "quarantine.csv").set_index("id")
    assert len(curated) == 24 and set(quarantine.index) == {"a05", "a55"}
    assert "no mask of the same stem" in quarantine.loc["a05", "reason"]
    assert quarantine.loc["a55", "reason"] == "a mask without image"


def test_the_fingerprint_is_recorded_and_follows_the_data(saved):
    facts = read_json(saved / "data" / "index.csv.json")
    assert facts["data"] == dataset.load(saved).fingerprint and facts["n"] == 23
    table = pd.read_csv(saved / "tables" / "curation.csv", keep_default_na=False)
    orphans = pd.DataFrame(columns=["id", "file", "reason"])
    dataset.save(saved, table.assign(prompt="q"), orphans, preset="test", seed=0)
    assert dataset.load(saved).fingerprint != facts["data"]


def test_a_run_without_data_names_the_notebook(tmp_path):
    with pytest.raises(InputError, match="01_data"):
        dataset.load(tmp_path)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "index.csv"])
def test_arrays_and_labels_with_one_flipped_bit_or_cut_short_are_refused(saved, name):
    path = saved / "data" / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-20] ^= 4
    for damaged in (bytes(flipped), whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="data: .*are corrupt.*run notebooks/01"):
            dataset.load(saved)
    path.write_bytes(whole)
    assert len(dataset.load(saved).images) == 23


def test_skin_tone_by_hand():
    """Grey skin has b* = 0: bright is +90 degrees, dark -90; lesions and frames do not count."""
    image = np.full((2, 8, 8, 3), 200, np.uint8)
    image[1] = 90
    image[:, :2] = 0  # a dark frame
    image[:, 6:] = 255  # the lesion
    mask = np.zeros((2, 8, 8), np.uint8)
    mask[:, 6:] = 1
    assert dataset.skin_tone(image, mask) == pytest.approx([90, -90], abs=0.1)
    assert np.isnan(dataset.skin_tone(image[:1], np.ones_like(mask[:1]))).all()
    tan = np.full((1, 4, 4, 3), (198, 134, 66), np.uint8)  # L* 60.6, b* 44.6 (sRGB, D65)
    expected = np.degrees(np.arctan2(60.6 - 50, 44.6))
    assert dataset.skin_tone(tan, np.zeros((1, 4, 4), np.uint8)) == pytest.approx([expected], abs=1)


def test_facts_say_where_and_how_large_a_lesion_is():
    images, masks = np.full((2, 8, 8, 3), 200, np.uint8), np.zeros((2, 8, 8), np.uint8)
    masks[0, 2:6, 2:6] = 1
    masks[1, :, 4:] = 1
    table = pd.DataFrame({"split": ["G", "S-val"]})
    facts = dataset.facts(dataset.Study(images, masks, table, ""))
    assert facts["area (% of image)"].tolist() == [25, 50]
    assert facts["off centre (% of side)"].tolist() == [0, 25]
    assert facts["part"].tolist() == ["G", "S-val"]
    assert facts["skin tone ITA (degrees)"].tolist() == pytest.approx([90, 90], abs=0.1)


def test_resized_averages_areas():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :, 2:] = 100
    mask = np.array([[[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]], np.uint8)
    small, shapes = dataset.resized(image, mask, 2)
    assert small[0, :, :, 0].tolist() == [[0, 100], [0, 100]]
    assert shapes[0].tolist() == [[1, 0], [0, 0]]  # one quarter is no lesion
