"""Folders of synthetic pairs: complete, resumable, never outdated, under the given conditions."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionlib.data import prompts
from lesionlib.data.dataset import Study
from lesionlib.engine import files, provenance
from lesionlib.engine.errors import InputError
from lesionlib.engine.settings import Data, Design, Masks, Settings
from lesionlib.generators import sets
from lesionlib.masks import conditions
from lesionlib.masks.recipe import random_masks

MASKS = np.zeros((5, 8, 8), np.uint8)
MASKS[:, 2:5, 3:6] = 1


RAMP = np.arange(8, dtype=np.uint8)[:, None, None]


def pictures(indices, log=None):
    for i in indices:
        if log is not None:
            log.append(i)
        yield np.full((8, 8, 3), 50 + 10 * i, np.uint8) + RAMP


def request(folder, **changes):
    """A request for five pairs in a folder; `changes` of its fields."""
    prompts = [f"p{i}" for i in range(5)]
    fields = dict(code=(), model="abc", seed=3, settings={"steps": 2}, inputs={})
    return sets.Request(folder, **{"masks": MASKS, "prompts": prompts} | fields | changes)


def fill(folder, make=pictures, segmenter=None, **changes):
    sets.fill(request(folder, **changes), make, segmenter)


def test_what_is_filled_is_loaded(tmp_path):
    fill(tmp_path)
    images, masks, fingerprint = sets.load(tmp_path, "03_controlnet")
    np.testing.assert_array_equal(images, list(pictures(range(5))))
    np.testing.assert_array_equal(masks, MASKS)
    assert len(fingerprint) == 16


def test_every_image_carries_where_it_comes_from(tmp_path):
    fill(tmp_path, segmenter=lambda images, masks: images[:, 0, 0, 0] / 100)
    table = pd.read_csv(tmp_path / "manifest.csv")
    assert table["mask_fidelity"].tolist() == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert (table["seed"] == 3).all() and (table["model"] == "abc").all()
    facts = Image.open(tmp_path / "images" / "000004.png").text
    assert facts["prompt"] == "p4" and facts["mask"] == "000004.png" and facts["index"] == "4"
    assert facts["seed"] == "3" and facts["model"] == "abc" and facts["settings"] == '{"steps": 2}'


def test_an_interrupted_set_goes_on_and_ends_the_same(tmp_path):
    def dies(indices):
        for i, picture in zip(indices, pictures(indices), strict=True):
            if i == 3:
                raise RuntimeError("killed")
            yield picture

    with pytest.raises(RuntimeError):
        fill(tmp_path / "a", make=dies)
    with pytest.raises(InputError, match="run notebooks/03_controlnet"):
        sets.load(tmp_path / "a", "03_controlnet")
    (tmp_path / "a" / "images" / "000001.png").unlink()  # a gap, as several processes leave it
    made = []
    fill(tmp_path / "a", make=lambda indices: pictures(indices, made))
    fill(tmp_path / "b")
    assert made == [1, 3, 4]
    assert (tmp_path / "a/manifest.csv").read_bytes() == (tmp_path / "b/manifest.csv").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"code": ("lesionlib.generators.pix2pixhd:generate",)},
        {"model": "abd"},
        {"seed": 4},
        {"settings": {"steps": 3}},
        {"inputs": {"base": "other"}},
        {"prompts": ["p"] * 5},
        {"masks": 1 - MASKS},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_all_images_are_rebuilt_when_anything_that_determines_them_changes(tmp_path, changes):
    fill(tmp_path)
    made = []
    fill(tmp_path, lambda indices: pictures(indices, made))
    assert made == []
    fill(tmp_path, lambda indices: pictures(indices, made), **changes)
    assert made == [0, 1, 2, 3, 4]
    assert np.array_equal(sets.load(tmp_path, "x")[1], changes.get("masks", MASKS))


def test_a_set_that_grows_keeps_the_pairs_that_it_has(tmp_path, capsys):
    four = {"masks": MASKS[:4], "prompts": ["p0", "p1", "p2", "p3"]}
    fill(tmp_path / "a", **four)
    cut, repainted = (tmp_path / "a" / "images" / f"00000{i}.png" for i in (0, 2))
    cut.write_bytes(cut.read_bytes()[:60])
    facts = Image.open(repainted).text
    sets._write_png(repainted, next(pictures([0])), facts)
    made, masks = [], MASKS.copy()
    masks[1] = 1 - masks[1]
    more = {"masks": masks, "prompts": [*four["prompts"], "p4"]}
    fill(tmp_path / "a", lambda indices: pictures(indices, made), **more)
    assert made == [0, 1, 2, 4]  # truncated, of another mask, repainted, new
    said = capsys.readouterr().out
    assert all(f"WARNING: {path}: it is corrupt" in said for path in (cut, repainted))
    fill(tmp_path / "b", **more)
    assert (tmp_path / "a/manifest.csv").read_bytes() == (tmp_path / "b/manifest.csv").read_bytes()
    fill(tmp_path / "a", lambda indices: pictures(indices, made), **four)
    assert made == [0, 1, 2, 4, 1] and len([*(tmp_path / "a" / "images").iterdir()]) == 4


def test_an_unfinished_set_that_grows_keeps_what_is_whole(tmp_path):
    fill(tmp_path, masks=MASKS[:3], prompts=["p0", "p1", "p2"])
    (tmp_path / "manifest.csv").unlink()
    cut = tmp_path / "images" / "000000.png"
    cut.write_bytes(cut.read_bytes()[:60])
    made = []
    fill(tmp_path, lambda indices: pictures(indices, made))
    assert made == [0, 3, 4]


def test_a_set_that_grows_keeps_no_pair_of_another_model(tmp_path):
    fill(tmp_path, masks=MASKS[:3], prompts=["p0", "p1", "p2"])
    made = []
    fill(tmp_path, lambda indices: pictures(indices, made), model="abd")
    assert made == [0, 1, 2, 3, 4]


def test_a_fingerprint_covers_images_and_masks(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b", masks=1 - MASKS)
    fill(tmp_path / "c", lambda indices: iter(255 - x for x in pictures(indices)))
    found = [sets.load(tmp_path / name, "x")[2] for name in "abc"]
    assert len(set(found)) == 3


@pytest.mark.parametrize("name", ["images/000003.png", "masks/000001.png"])
def test_a_corrupt_file_of_a_set_is_reported_and_rebuilt(tmp_path, name, capsys):
    fill(tmp_path)
    path, made = tmp_path / name, []
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    fill(tmp_path, lambda indices: pictures(indices, made))
    assert f"WARNING: {path}: it is corrupt" in capsys.readouterr().out
    assert path.read_bytes() == whole and made == [int(path.stem)]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.full((8, 8, 3), 90, np.uint8),
        np.arange(192, dtype=np.uint8).reshape(8, 8, 3) % 5,
    ],
    ids=["black", "constant", "almost black"],
)
def test_an_image_that_shows_nothing_stops_the_run_and_is_named(tmp_path, image):
    with pytest.raises(InputError, match=r"000000\.png.*black or constant image"):
        fill(tmp_path, make=lambda indices: iter([image] * 5))
    assert not (tmp_path / "images" / "000000.png").exists()


@pytest.mark.parametrize("name", ["images/000003.png", "masks/000001.png", "manifest.csv"])
def test_a_corrupt_file_of_a_set_is_named(tmp_path, name):
    fill(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=f"{path.name}: it is corrupt"):
        sets.load(tmp_path, "03_controlnet")


def test_tables_name_the_perceptual_loss(tmp_path):
    assert sets.remark(tmp_path, "controlnet") == sets.remark(tmp_path, "gan") == ""
    for method, name in (("pix2pixhd", "VGG19"), ("pix2pixhd_plus", "none")):
        path = tmp_path / "models" / method / "model.safetensors"
        files.write_json(path, name)
        provenance.record(path, parameters={"vgg": name})
        assert sets.remark(tmp_path, method) == f"perceptual loss: {name}; transposed convolutions"


def test_conditions_are_written_and_sizes_in_prompts_are_those_of_the_masks(tmp_path):
    labels = pd.DataFrame({"id": [f"i{k}" for k in range(30)], "diagnosis": "nevus", "split": "G"})
    labels[list(prompts.ATTRIBUTES)] = 0.0
    study = Study(np.zeros((30, 16, 16, 3), np.uint8), np.ones((30, 16, 16), np.uint8), labels, "f")
    wishes = tmp_path / "wishes.csv"
    wishes.write_text("diagnosis,streaks,weight\nmelanoma,1,1\n")
    settings = Settings(
        data=Data(image_size=32, prompt_details=["size"]),
        design=Design(synthetic_amounts=[4, 6]),
        masks=Masks(mask_seed=1, prompt_draw=str(wishes)),
    )
    masks, texts = conditions.draw(tmp_path, study, settings)
    start = "a dermoscopic image of a melanoma with streaks, "
    assert texts == [start + prompts.lesion_size(mask) for mask in masks]
    assert len({text for text in texts}) > 1
    shapes, written, fingerprint = conditions.load(tmp_path)
    assert np.array_equal(shapes, masks) and written == texts
    joint = settings.model_copy(update={"masks": Masks(mask_seed=1)})
    masks_again, plain = conditions.draw(tmp_path, study, joint)
    assert np.array_equal(masks_again, masks) and all(" nevus, " in text for text in plain)
    assert conditions.load(tmp_path)[2] != fingerprint


def test_control_sets_change_one_thing_each(tmp_path):
    labels = pd.DataFrame({"id": [f"i{k}" for k in range(30)], "diagnosis": "nevus", "split": "G"})
    labels[list(prompts.ATTRIBUTES)] = 1.0
    real = random_masks(30, 32, seed=5)
    study = Study(np.zeros((30, 32, 32, 3), np.uint8), real, labels, "f")
    settings = Settings(
        data=Data(image_size=32, prompt_details=["size"]),
        design=Design(synthetic_amounts=[4, 6]),
        masks=Masks(mask_seed=1),
    )
    masks, texts = conditions.draw(tmp_path, study, settings)
    for name, same_masks in {
        "base": True,
        "controlnet_empty": True,
        "controlnet_uniform": True,
        "controlnet_real": False,
        "controlnet_fitted": False,
    }.items():
        shapes, words = conditions.vary(tmp_path, study, settings, name)
        assert shapes.shape == (4, 32, 32) and len(words) == 4
        assert np.array_equal(shapes, masks[:4]) == same_masks
        if name == "controlnet_empty":
            assert words == [""] * 4
        elif name == "controlnet_uniform":
            uniform = prompts.draw(study.part("G").table, 4, 1, "uniform")
            assert words == prompts.describe(uniform, "full", ["size"], masks[:4])
        elif same_masks:
            assert words == texts[:4]
        else:  # the same labels, with the size of the other mask
            assert words == [
                f"{text.rpartition(', ')[0]}, {prompts.lesion_size(shape)}"
                for text, shape in zip(texts, shapes, strict=False)
            ]
