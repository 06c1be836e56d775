"""The reference segmenter: trained once, the same after loading, fit to judge anywhere."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from small_base import pairs

from lesionlib.data.dataset import Study
from lesionlib.engine.errors import InputError
from lesionlib.engine.settings import Augmentation, Reference
from lesionlib.segmentation import measures, reference, training

SETTINGS = Reference(size=32, steps=60, batch=8, lr=1e-2, decoder=[16, 8, 8], colour=0.1)
NONE = Augmentation(trainings=[])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Several threads wait for one another where cores are shared: seconds become minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def study(brighter=0):
    images, masks, _ = pairs()
    parts = ["S-train"] * 16 + ["S-val"] * 4 + ["G"] * 4
    return Study(images + np.uint8(brighter), masks, pd.DataFrame({"split": parts}), "f")


class Bright:
    """A reference segmenter without a network: lesion is where an image is bright."""

    size, model = 32, None

    def predictions(self, images):
        return (images[..., 0] > 127).astype(np.uint8)


def blob(rows, columns, side=32):
    mask = np.zeros((side, side), np.uint8)
    mask[rows, columns] = 1
    return mask


def test_it_learns_is_kept_and_works_at_its_own_size(tmp_path, monkeypatch):
    first = reference.train(tmp_path, study(), SETTINGS, NONE)
    images, masks, _ = pairs()
    assert not list((tmp_path / "checkpoints").rglob("*.pt"))  # it is finished
    scores = first(images, masks)
    assert scores.shape == (24,) and scores.mean() > 0.8 > first(images, masks[::-1]).mean()
    large = [pictures.repeat(2, 1).repeat(2, 2) for pictures in (images, masks)]
    np.testing.assert_allclose(first(*large), scores, atol=1e-6)
    np.testing.assert_array_equal(
        reference.fidelity(first, *large, 0.01)[["dice", "hd95"]],
        reference.fidelity(first, images, masks, 0.01)[["dice", "hd95"]],
    )
    monkeypatch.setattr(training, "train", None)  # would fail if it were trained again
    unused = NONE.model_copy(update={"scale": [0.1, 1.0]})  # by this training
    for same in (NONE, unused):
        again = reference.train(tmp_path, study(), SETTINGS, same)
        np.testing.assert_array_equal(again(images, masks), scores)
    measuring = SETTINGS.model_copy(update={"distractor": 0.5, "moved": 7})
    reference.train(tmp_path, study(), measuring, NONE)
    shutil.rmtree(tmp_path / "models")  # as Snakemake does before the stage is executed again
    again = reference.train(tmp_path, study(), SETTINGS, NONE)
    np.testing.assert_array_equal(again(images, masks), scores)


@pytest.mark.parametrize(
    "change",
    [
        dict(study=study(brighter=1)),
        dict(settings=SETTINGS.model_copy(update={"seed": 1})),
        dict(warps=Augmentation()),
    ],
    ids=["images", "seed", "warps"],
)
def test_it_is_trained_again_for(change, tmp_path, monkeypatch):
    how = dict(study=study(), settings=SETTINGS.model_copy(update={"steps": 2}), warps=NONE)
    reference.train(tmp_path, **how)
    monkeypatch.setattr(training, "train", None)
    with pytest.raises(TypeError):
        reference.train(tmp_path, **how | change)


def test_warps_are_seen_in_training_and_in_validation(tmp_path, monkeypatch):
    seen = []

    def train(network, part, val_part, recipe, **_):
        seen.append((len(val_part[0]), recipe.warps))
        lesion = val_part[0][..., 0] < 110  # dark squares
        assert measures.dice(lesion.astype(np.uint8), val_part[1]).min() > 0.8  # moved alike
        areas = val_part[1].sum((1, 2))
        assert (areas[:4] == 144).all() and len(set(areas[4:])) > (4 if recipe.warps else -1)
        raise InterruptedError

    monkeypatch.setattr(training, "train", train)
    for warps in (Augmentation(), NONE):
        with pytest.raises(InterruptedError):
            reference.train(tmp_path, study(), SETTINGS, warps)
    assert seen == [(4 * (1 + reference.COPIES), Augmentation()), (4, None)]


def test_a_missing_one_names_the_notebook(tmp_path):
    with pytest.raises(InputError, match="run notebooks/02_masks"):
        reference.load(tmp_path)


def test_fidelity_by_hand():
    left, right = blob(np.s_[8:24], np.s_[2:10]), blob(np.s_[8:24], np.s_[20:28])
    corner = blob(np.s_[0:3], np.s_[29:32])
    found = [left, left | right, left | corner, np.zeros_like(left)]
    images = np.stack(found)[..., None].repeat(3, -1) * 255
    rows = reference.fidelity(Bright(), images, np.stack([left] * 4), 0.01)
    assert rows["distractors"].tolist() == [0, 1, 0, 0]  # 9 of 1,024 pixels are too few
    assert rows["dice"].tolist() == pytest.approx([1, 2 / 3, 256 / 265, 0])
    assert rows["hd95"][0] == 0 and rows["hd95"][3] == 1
    assert set(rows["size"]) == {"medium-sized"}
    smaller = reference.fidelity(Bright(), images, np.stack([left] * 4), 0.001)
    assert smaller["distractors"].tolist() == [0, 1, 1, 0]
    twice = reference.fidelity(Bright(), images[:2], np.stack([left, right]), 0.01)
    assert twice["chance"].tolist() == pytest.approx([0, 2 / 3])  # with the mask of the other
    assert reference.fidelity(Bright(), images[:1], left[None], 0.01)["chance"].isna().all()


def test_a_region_that_touches_the_mask_is_no_distractor_and_an_empty_mask_has_only_distractors():
    lesion, long = blob(np.s_[8:24], np.s_[2:10]) > 0, blob(np.s_[8:10], np.s_[9:30]) > 0
    assert reference.distractors(lesion | long, lesion, 0.001) == 0
    two = lesion | (blob(np.s_[8:24], np.s_[20:28]) > 0)
    assert reference.distractors(two, np.zeros_like(two), 0.001) == 2


def test_real_lesions_are_moved_to_the_place_and_the_size_of_a_mask():
    images, masks, _ = pairs()
    places = np.s_[9:18], np.s_[14:26]
    goals = np.stack([blob(rows, columns) for rows in places for columns in places])
    goals = goals.repeat(2, 1).repeat(2, 2)  # at another resolution than the images
    moved, lesions = reference.moved_onto(images, masks, goals, 0)
    assert moved.dtype == lesions.dtype == np.uint8 and moved.shape == (4, 32, 32, 3)
    wanted, got = (reference._place(x) for x in (goals, lesions))
    assert (wanted[0] - got[0]).abs().max() < 0.1  # a pixel of 32 is 0.06
    assert ((got[1] / wanted[1]).log().abs() < 0.2).all()
    dark = (moved[..., 0] < 110).astype(np.uint8)
    assert measures.dice(dark, lesions).min() > 0.8  # image and mask have gone together
    again, other = (reference.moved_onto(images, masks, goals, seed) for seed in (0, 1))
    assert np.array_equal(again[0], moved) and not np.array_equal(other[0], moved)


def test_images_without_a_lesion_are_not_moved_and_those_that_fit_are_preferred():
    images, masks, _ = pairs(2)
    masks = np.stack([np.zeros((32, 32), np.uint8), masks[0]])
    goal = blob(np.s_[10:20], np.s_[10:20])[None].repeat(20, 0)
    assert reference.moved_onto(images, masks, goal, 0)[1].any((1, 2)).all()
    masks[0, :, :2] = 1  # cut by the border: moved inwards, the mirror makes it twice as large
    chosen = reference.moved_onto(images, masks, goal, 0)[1]
    assert (chosen.sum((1, 2)) < 150).all()


def test_real_images_have_a_row_for_each_image_in_place_and_moved():
    images, masks, _ = pairs()
    part = Study(masks[..., None].repeat(3, -1) * 255, masks, pd.DataFrame(), "f")
    settings = SETTINGS.model_copy(update={"moved": 5})
    rows = reference.on_real_images(Bright(), part, masks[::-1], settings)
    assert rows["images"].value_counts().to_dict() == {"in place": 24, "moved": 5}
    assert (rows.loc[rows["images"] == "in place", "dice"] == 1).all()
    assert (rows.loc[rows["images"] == "moved", "dice"] > 0.85).all()
