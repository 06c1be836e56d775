"""Folders of synthetic pairs: complete, resumable, and what was asked for."""

import numpy as np
import pandas as pd
import pytest

from lesionlib import prompts, synthetic
from lesionlib.data import Study
from lesionlib.errors import InputError

MASKS = np.zeros((5, 8, 8), np.uint8)
MASKS[:, 2:5, 3:6] = 1


def pictures(first, log=None):
    for i in range(first, 5):
        if log is not None:
            log.append(i)
        yield np.full((8, 8, 3), 10 * i, np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None]


def fill(folder, key="k", make=pictures):
    synthetic.fill(folder, MASKS, [f"p{i}" for i in range(5)], make, key, "test", seed=0)


def test_what_is_filled_is_loaded(tmp_path):
    fill(tmp_path)
    images, masks, fingerprint = synthetic.load(tmp_path, "03_controlnet")
    np.testing.assert_array_equal(images, list(pictures(0)))
    np.testing.assert_array_equal(masks, MASKS)
    assert len(fingerprint) == 16


def test_an_interrupted_set_goes_on_and_ends_the_same(tmp_path):
    def dies(first):
        for i, picture in enumerate(pictures(first)):
            if i == 3:
                raise RuntimeError("killed")
            yield picture

    with pytest.raises(RuntimeError):
        fill(tmp_path / "a", make=dies)
    with pytest.raises(InputError, match="run notebooks/03_controlnet"):
        synthetic.load(tmp_path / "a", "03_controlnet")
    made = []
    fill(tmp_path / "a", make=lambda first: pictures(first, made))
    fill(tmp_path / "b")
    assert made == [3, 4]
    assert (tmp_path / "a/manifest.csv").read_bytes() == (tmp_path / "b/manifest.csv").read_bytes()


def test_another_key_makes_all_anew(tmp_path):
    fill(tmp_path)
    made = []
    fill(tmp_path, key="other", make=lambda first: pictures(first, made))
    assert made == [0, 1, 2, 3, 4]


def test_a_constant_image_stops_the_run_and_is_named(tmp_path):
    def black(first):
        yield from [np.zeros((8, 8, 3), np.uint8)] * 5

    with pytest.raises(InputError, match=r"000000\.png.*constant image"):
        fill(tmp_path, make=black)


def test_what_is_asked_for_is_written_and_sizes_in_prompts_are_those_of_the_masks(tmp_path):
    labels = pd.DataFrame({"id": [f"i{k}" for k in range(30)], "diagnosis": "nevus", "split": "G"})
    labels[list(prompts.ATTRIBUTES)] = 0.0
    study = Study(np.zeros((30, 16, 16, 3), np.uint8), np.ones((30, 16, 16), np.uint8), labels, "f")
    wishes = tmp_path / "wishes.csv"
    wishes.write_text("diagnosis,streaks,weight\nmelanoma,1,1\n")
    common = dict(n=6, size=32, mode="paper", seed=1, prompt="full", details=["size"])
    masks, texts = synthetic.ask(tmp_path, study, draw=str(wishes), **common)
    start = "a dermoscopic image of a melanoma with streaks, "
    assert texts == [start + prompts.lesion_size(mask) for mask in masks]
    assert len({text for text in texts}) > 1
    shapes, written, fingerprint = synthetic.asked(tmp_path)
    assert np.array_equal(shapes, masks) and written == texts
    masks_again, plain = synthetic.ask(tmp_path, study, draw="joint", **common)
    assert np.array_equal(masks_again, masks) and all(" nevus, " in text for text in plain)
    assert synthetic.asked(tmp_path)[2] != fingerprint
