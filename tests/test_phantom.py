"""The embedded phantoms: exact masks, visible attributes, ISIC's layout, resumable writing."""

from functools import cache

import cv2
import numpy as np
import pandas as pd
import pytest

from lesionlib.data import phantom
from lesionlib.engine.errors import InputError

TABLES = {
    "ISIC2018_Task2_Training_attributes.csv": ["id", *phantom.ATTRIBUTES],
    "ISIC-2017_Training_Part3_GroundTruth.csv": ["image_id", "melanoma", "seborrheic_keratosis"],
    "ISIC-2017_Training_Data_metadata.csv": ["image_id", "age_approximate", "sex"],
    "ISIC_2019_Training_GroundTruth.csv": [
        "image",
        "MEL",
        "NV",
        "BCC",
        "AK",
        "BKL",
        "DF",
        "VASC",
        "SCC",
        "UNK",
    ],
    "ISIC_2019_Training_Metadata.csv": [
        "image",
        "age_approx",
        "anatom_site_general",
        "lesion_id",
        "sex",
    ],
}


@pytest.fixture(scope="module")
def phantoms():
    return [phantom.sample(i) for i in range(8)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return phantom.write_dataset(tmp_path_factory.mktemp("isic"), 6, size=64, workers=1)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@cache
def with_and_without(attribute, index):
    """The same phantom painted with one attribute only and with none, and its mask."""
    images = []
    for drawn in (True, False):
        flags = {name: drawn and name == attribute for name in phantom.ATTRIBUTES}
        labels = {"diagnosis": "nevus", "attributes": flags}
        image, mask = phantom.paint(labels, phantom.streams(index), 256)
        images.append(image.astype(int))
    return *images, mask


def test_an_index_alone_determines_the_image(phantoms):
    again = phantom.sample(3)
    assert (again.image == phantoms[3].image).all() and (again.mask == phantoms[3].mask).all()
    assert again.attributes == phantoms[3].attributes and again.age == phantoms[3].age
    assert (phantom.sample(3, seed=1).image != again.image).any()
    assert (phantoms[4].image != again.image).any()


def test_form_of_a_phantom(phantoms):
    for p in phantoms:
        assert p.image.shape == (256, 256, 3) and p.image.dtype == np.uint8
        assert p.mask.shape == (256, 256) and p.mask.dtype == np.uint8
        assert p.diagnosis in phantom.DIAGNOSES and p.site in phantom.SITES
        assert tuple(p.attributes) == phantom.ATTRIBUTES
        assert p.age % 5 == 0 and 5 <= p.age <= 85 and p.sex in ("female", "male")
        assert 0.02 < p.mask.mean() < 0.65


@pytest.mark.parametrize("size", [64, 256])
def test_mask_is_one_piece_without_holes(phantoms, size):
    for mask in [
        p.mask if size == 256 else phantom.sample(i, size).mask for i, p in enumerate(phantoms[:5])
    ]:
        assert set(np.unique(mask)) == {0, 1}
        assert cv2.connectedComponents(mask, connectivity=4)[0] == 2
        _, tree = cv2.findContours(np.pad(mask, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[-2:]
        assert (tree[0, :, 3] == -1).all()  # no contour inside another


def test_solid_fills_holes_and_keeps_the_largest_piece():
    binary = np.zeros((20, 20), np.uint8)
    binary[2:12, 2:12], binary[5:8, 5:8], binary[15:17, 15:17] = 1, 0, 1
    assert phantom.solid(binary).sum() == 100
    assert phantom.solid(np.ones((4, 4))).all()


def test_lesion_is_darker_than_the_skin_around(phantoms):
    differences = []
    for p in phantoms:
        ring = (cv2.dilate(p.mask, np.ones((41, 41))) > 0) & (
            cv2.dilate(p.mask, np.ones((9, 9))) == 0
        )
        differences.append(p.image[ring].mean() - p.image[p.mask > 0].mean())
    assert np.mean(differences) > 25 and np.mean(np.array(differences) > 8) > 0.9


@pytest.mark.parametrize("attribute", phantom.ATTRIBUTES)
def test_a_flag_changes_the_lesion_visibly_and_nothing_else(attribute):
    for index in range(2):
        drawn, plain, mask = with_and_without(attribute, index)
        if attribute == "streaks":  # they widen the border, and with it all that follows it
            assert (np.abs(drawn - plain).max(-1) > 25).sum() > 50
            continue
        change = np.abs(drawn - plain).max(-1)
        near = cv2.dilate(mask, np.ones((61, 61))) > 0  # soft borders reach beyond the mask
        assert (change[mask > 0] > 12).sum() > 40
        assert change[~near].max(initial=0) <= 3


def test_milia_like_cysts_are_bright_spots_inside_the_lesion():
    for index in range(2):
        drawn, plain, mask = with_and_without("milia_like_cyst", index)
        brighter = (drawn - plain).min(-1)
        assert (brighter[mask > 0] > 25).sum() >= 20
        assert (drawn - plain).min() >= -3  # they darken nothing


def test_globules_and_networks_are_darker_or_lighter():
    for name, sign in (("globules", -1), ("pigment_network", -1), ("negative_network", 1)):
        drawn, plain, mask = with_and_without(name, 1)
        change = (sign * (drawn - plain)).mean(-1)[mask > 0]
        assert (change > 10).sum() > 40


def test_frequencies_of_300_patients():
    labels = [phantom.draw_labels(phantom.streams(i)["labels"]) for i in range(300)]
    frame = pd.DataFrame([{**row, **row["attributes"]} for row in labels])
    for diagnosis, share in phantom.DIAGNOSES.items():
        assert abs((frame.diagnosis == diagnosis).mean() - share) < 0.08
    by = frame.groupby("diagnosis")[list(phantom.ATTRIBUTES)].mean()
    milia, network = by.milia_like_cyst, by.pigment_network
    assert milia["benign keratosis"] > milia["nevus"] + 0.3
    assert network["nevus"] > network["benign keratosis"] + 0.3
    ages = frame.groupby("diagnosis").age.mean()
    assert ages["nevus"] + 10 < min(ages["melanoma"], ages["benign keratosis"])


def test_layout_and_tables(dataset):
    ids = [f"ISIC_{9000000 + i}" for i in range(6)]
    for i, name in enumerate(ids):
        image = cv2.imread(str(dataset / f"ISIC2018_Task1-2_Training_Input/{name}.jpg"))
        path = dataset / f"ISIC2018_Task1_Training_GroundTruth/{name}_segmentation.png"
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image.shape == (64, 64, 3) and mask.shape == (64, 64)
        if i > 2:  # the first three suffice to see that pairs belong together
            continue
        expected = phantom.sample(i, 64)
        assert np.abs(image[..., ::-1].astype(int) - expected.image).mean() < 6
        assert (mask == 255 * expected.mask).all()
    tables = {name: pd.read_csv(dataset / name) for name in TABLES}
    for name, columns in TABLES.items():
        frame = tables[name]
        assert list(frame) == columns
        assert list(frame.iloc[:, 0].str.removesuffix("_downsampled")) == (
            ids[:4] if "2017" in name else ids
        )
    assert not list(dataset.rglob(".*"))


def test_tables_agree_with_each_other():
    made = {
        name: frame.set_index(frame.columns[0]) for name, frame in phantom.tables(200, 0).items()
    }
    for name in made:
        made[name].index = made[name].index.str.removesuffix("_downsampled")
    old, new = (
        made[f"{n}.csv"]
        for n in ("ISIC-2017_Training_Data_metadata", "ISIC_2019_Training_Metadata")
    )
    both = old.rename(columns={"sex": "sex_old"}).join(new)
    aged = both[(both.age_approximate != "unknown") & both.age_approx.notna()]
    assert (aged.age_approximate.astype(int) == aged.age_approx).all() and len(aged) > 100
    sexed = both[(both.sex_old != "unknown") & both.sex.notna()]
    assert (sexed.sex_old == sexed.sex).all()
    assert (both.age_approximate == "unknown").any() and new.lesion_id.isna().mean() > 0.7
    truth, part3 = (
        made[f"{n}.csv"]
        for n in ("ISIC_2019_Training_GroundTruth", "ISIC-2017_Training_Part3_GroundTruth")
    )
    assert (truth.sum(axis=1) == 1).all()
    assert (truth.MEL[part3.index] == part3.melanoma).all()
    assert (truth.BKL[part3.index] == part3.seborrheic_keratosis).all()


def test_an_interrupted_write_resumes(dataset):
    before = content(dataset)
    (dataset / "ISIC2018_Task1-2_Training_Input/ISIC_9000002.jpg").unlink()
    (dataset / "ISIC_2019_Training_Metadata.csv").unlink()
    kept = dataset / "ISIC2018_Task1-2_Training_Input/ISIC_9000001.jpg"
    stamp = kept.stat().st_mtime_ns
    phantom.write_dataset(dataset, 6, size=64, workers=1)
    assert content(dataset) == before and kept.stat().st_mtime_ns == stamp


def test_processes_write_the_same_bytes(dataset, tmp_path):
    phantom.write_dataset(tmp_path, 6, size=64, workers=2)
    assert content(tmp_path) == content(dataset)


def test_another_seed_does_not_mix_into_a_folder(dataset):
    with pytest.raises(InputError):
        phantom.write_dataset(dataset, 6, size=64, seed=1)
