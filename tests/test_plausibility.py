"""Masks that are none: label maps, outlines, lesions that are what is not marked."""

import contextlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionlib.data import curation
from lesionlib.data.plausibility import BRIGHT, LabelMapError, MaskRule, judge
from lesionlib.engine.errors import InputError

Y, X = np.mgrid[:80, :100]
DISTANCE = np.hypot(Y - 40, X - 50)


def rings(*values):
    """A map of labels (80, 100): discs of 30, 20, 10, ... pixels with these values on 0."""
    labels = np.zeros((80, 100), np.uint8)
    for k, value in enumerate(values):
        labels[DISTANCE < 30 - 10 * k] = value
    return labels


def read(tmp_path, mask, rule=BRIGHT):
    """The mask (40, 40) of 0 and 1 that is read of a picture, an array or an image of Pillow."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(tmp_path / "i.png")
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    mask.save(tmp_path / "m.png")
    return curation.read_facts(tmp_path / "i.png", tmp_path / "m.png", 40, "squash", rule)[1]


@pytest.mark.parametrize("values", [(1, 2), (2, 1), (1, 2, 3), (127, 255), (1, 255), (85, 170)])
def test_more_than_two_values_are_an_error_that_lists_them(tmp_path, values):
    with pytest.raises(LabelMapError, match="has more than two values: 0 .*--lesion-value") as said:
        read(tmp_path, rings(*values))
    assert all(f"{value} (" in str(said.value) for value in values)
    labels = rings(*values)
    for value in values:
        shape = read(tmp_path, labels, MaskRule(value))
        assert abs(shape.mean() - (labels == value).mean()) < 0.02
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path, labels, MaskRule(99))


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_colours_are_labels_too(tmp_path, mode):
    picture = Image.fromarray(rings(1, 2))
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    with pytest.raises(LabelMapError, match="#000000 .*#800000"):
        read(tmp_path, picture.convert(mode))


def test_soft_edges_and_compression_are_no_labels(tmp_path):
    from cv2 import GaussianBlur, resize

    disc = rings(255)
    soft = GaussianBlur(disc, (0, 0), 1.5)
    doubled = resize(resize(disc, (50, 40)), (100, 80))
    for mask in (disc, soft, doubled, rings(1), 255 - np.uint8(DISTANCE >= 30) * 245):
        assert abs(read(tmp_path, mask).mean() - (disc > 0).mean()) < 0.03


@pytest.mark.parametrize("width", [1, 2, 4])
def test_an_outline_is_no_area(tmp_path, width):
    ring = (np.abs(DISTANCE - 28) < width).astype(np.uint8) * 255
    with pytest.raises(InputError, match="is an outline, no area.*fill the outline"):
        read(tmp_path, ring)


def test_an_image_is_not_its_own_mask(tmp_path):
    image, _ = rings(255), read(tmp_path, rings(255))
    Image.fromarray(image).save(tmp_path / "i.png")
    with pytest.raises(InputError, match="is the image itself.*--masks DIR"):
        curation.read_pair(tmp_path / "i.png", tmp_path / "m.png", 40)


def facts(**columns):
    return pd.DataFrame(columns)


def test_lesions_on_the_border_of_most_masks_are_said_with_the_remedy():
    assert judge(facts(top=[255] * 4, border=[0.9, 1, 0.1, 0]), BRIGHT) == []
    (line,) = judge(facts(top=[255] * 4, border=[0.9, 1, 0.8, 0]), BRIGHT)
    assert "in 3 of 4 masks" in line and "68%" in line and "--invert-masks" in line


def test_masks_with_different_small_values_are_an_error():
    with pytest.raises(LabelMapError, match="1 in 3, 2 in 1.*--lesion-value"):
        judge(facts(top=[1, 1, 2, 1], border=[0.0] * 4), BRIGHT)
    assert judge(facts(top=[1, 1, 2, 1], border=[0.0] * 4), MaskRule(1)) == []
    assert judge(facts(top=[1, 255], border=[0.0] * 2), BRIGHT) == []


def test_inverted_masks_are_turned(tmp_path):
    disc = rings(255)
    assert (read(tmp_path, 255 - disc, MaskRule(invert=True)) == read(tmp_path, disc)).all()


@pytest.mark.parametrize("maps, stopped", [(1, False), (3, True)])
def test_many_label_maps_stop_the_reading_and_a_single_one_is_quarantined(tmp_path, maps, stopped):
    rows = []
    for k in range(30):
        with contextlib.suppress(LabelMapError):
            read(tmp_path, rings(1, 2) if k < maps else rings(255))
        for name in ("i", "m"):
            (tmp_path / f"{name}.png").rename(tmp_path / f"{name}{k}.png")
        rows.append((str(k), str(tmp_path / f"i{k}.png"), str(tmp_path / f"m{k}.png")))
    table = pd.DataFrame(rows, columns=["id", "image", "mask"])
    if stopped:
        with pytest.raises(LabelMapError, match="2 masks so far are like it"):
            curation.curate(table, 32, tmp_path / "out")
    else:
        found = curation.curate(table, 32, tmp_path / "out")
        assert (found["status"] == "quarantined").sum() == 1
        assert "more than two values" in curation.quarantine_notes(found["reason"][:1])[0]
