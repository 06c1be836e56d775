"""The reference segmenter: trained on S-train once, the same after loading, resumable."""

import numpy as np
import pandas as pd
import pytest
from small_base import pairs

from lesionlib.data.dataset import Study
from lesionlib.engine.errors import InputError
from lesionlib.engine.settings import Reference
from lesionlib.segmentation import reference, training

SETTINGS = Reference(size=32, epochs=12, batch=8, lr=3e-3, decoder=[16, 8, 8])


def study(brighter=0):
    images, masks, _ = pairs()
    parts = ["S-train"] * 16 + ["S-val"] * 4 + ["G"] * 4
    return Study(images + np.uint8(brighter), masks, pd.DataFrame({"split": parts}), "f")


def test_it_learns_is_kept_and_works_at_its_own_size(tmp_path, monkeypatch):
    first = reference.train(tmp_path, study(), SETTINGS)
    images, masks, _ = pairs()
    assert not list((tmp_path / "checkpoints").rglob("*.pt"))  # it is finished
    scores = first(images, masks)
    assert scores.shape == (24,) and scores.mean() > 0.8 > first(images, masks[::-1]).mean()
    large = first(images.repeat(2, 1).repeat(2, 2), masks.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(large, scores, atol=1e-6)
    monkeypatch.setattr(training, "train", None)  # would fail if it were trained again
    np.testing.assert_array_equal(
        reference.train(tmp_path, study(), SETTINGS)(images, masks), scores
    )
    with pytest.raises(TypeError):
        reference.train(tmp_path, study(brighter=1), SETTINGS)


def test_a_missing_one_names_the_notebook(tmp_path):
    with pytest.raises(InputError, match="run notebooks/02_masks"):
        reference.load(tmp_path)
