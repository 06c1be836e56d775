"""The judge: trained on S-train once, the same after loading, missing with a word of help."""

import numpy as np
import pandas as pd
import pytest
from small_base import pairs

from lesionlib.data.dataset import Study
from lesionlib.engine.errors import InputError
from lesionlib.segmentation import reference, training

OPTIONS = dict(
    size=32, options={"encoder": "resnet18", "decoder_channels": [16, 8, 8]}, batch=8, lr=3e-3
)


def study(fingerprint="f"):
    images, masks, _ = pairs()
    parts = ["S-train"] * 16 + ["S-val"] * 4 + ["G"] * 4
    return Study(images, masks, pd.DataFrame({"split": parts}), fingerprint)


def test_a_judge_learns_is_kept_and_sees_at_its_own_size(tmp_path, monkeypatch):
    first = reference.train(tmp_path, study(), epochs=12, **OPTIONS)
    images, masks, _ = pairs()
    scores = first(images, masks)
    assert scores.shape == (24,) and scores.mean() > 0.8 > first(images, masks[::-1]).mean()
    large = first(images.repeat(2, 1).repeat(2, 2), masks.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(large, scores, atol=1e-6)
    monkeypatch.setattr(training, "train", None)  # would fail if it were trained again
    np.testing.assert_array_equal(
        reference.train(tmp_path, study(), epochs=12, **OPTIONS)(images, masks), scores
    )
    with pytest.raises(TypeError):
        reference.train(tmp_path, study("other data"), epochs=12, **OPTIONS)


def test_a_missing_judge_names_the_notebook(tmp_path):
    with pytest.raises(InputError, match="run notebooks/02_masks"):
        reference.load(tmp_path)
