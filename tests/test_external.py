"""External pairs: another generator as an arm, further test sets, and their faults."""

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from lesionlib.data import dataset, external_tests, phantom
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import write_csv, write_json
from lesionlib.generators import external_generators, sets
from lesionlib.masks import recipe
from lesionlib.segmentation import reference

SIZE = 64


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 30 procedural images and their masks."""
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.write_dataset(folder, 30, SIZE, workers=1)
    return (
        sorted((folder / "ISIC2018_Task1-2_Training_Input").glob("*.jpg")),
        sorted((folder / "ISIC2018_Task1_Training_GroundTruth").glob("*.png")),
    )


@pytest.fixture
def run(tmp_path, pictures, monkeypatch):
    """A run's data of the first 20 pictures, with a reference segmenter that always says 0.5."""
    images = np.stack([cv2.imread(str(path))[..., ::-1] for path in pictures[0][:20]])
    shapes = np.stack([cv2.imread(str(p), 0) > 0 for p in pictures[1][:20]]).astype(np.uint8)
    folder = tmp_path / "run" / "data"
    parts = ["G"] * 8 + ["S-train"] * 4 + ["S-val"] * 4 + ["S-test"] * 4
    names = [path.stem for path in pictures[0][:20]]
    write_csv(folder / "index.csv", pd.DataFrame({"id": names, "split": parts}))
    np.save(folder / "images.npy", images)
    np.save(folder / "masks.npy", shapes)
    write_json(folder / "index.csv.json", {"data": dataset.fingerprint(folder)})
    monkeypatch.setattr(
        reference, "load", lambda run: lambda images, masks: np.full(len(images), 0.5)
    )
    return tmp_path / "run"


def given_pairs(source, pictures, rows, shapes=None):
    """A folder of pairs as another group would give it."""
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
    for i, row in enumerate(rows):
        (source / "images" / f"{i}.jpg").write_bytes(pictures[0][row].read_bytes())
        mask = cv2.imread(str(pictures[1][row]), 0) if shapes is None else shapes[i] * 255
        cv2.imwrite(str(source / "masks" / f"{i}.png"), mask)
    return source


def test_pairs_of_another_generator_become_a_synthetic_set(run, pictures, tmp_path):
    source = given_pairs(tmp_path / "gan", pictures, range(22, 28))
    external_generators.read(run, "gan", source, fit="squash")
    pairs = sets.load_pairs(run, "gan")
    assert pairs.images.shape == (6, SIZE, SIZE, 3) and pairs.masks.shape == (6, SIZE, SIZE)
    assert set(pairs.fidelity) == {0.5}
    assert pairs.facts["trained_on"] is None
    assert pairs.facts["data"] == dataset.load(run).fingerprint
    assert not (run / "generated" / "gan").exists()


def test_images_for_s_test_are_taken_by_name_and_training_ids_are_kept(run, pictures, tmp_path):
    source = given_pairs(tmp_path / "gan", pictures, range(22, 28))
    (source / "trained_on.csv").write_text("id\nISIC_1\nISIC_2\n")
    (source / "generated").mkdir()
    for k, path in enumerate(pictures[0][16:20]):
        cv2.imwrite(
            str(source / "generated" / f"{path.stem}.png"),
            np.add.outer(np.full((90, 1), 40 * k), np.arange(3 * 90).reshape(90, 3) % 60).reshape(
                90, 90, 3
            ),
        )
    external_generators.read(run, "gan", source, fit="squash")
    made, shapes, _ = sets.load(run / "generated" / "gan", "x")
    study = dataset.load(run)
    np.testing.assert_array_equal(shapes, study.part("S-test").masks)
    assert np.diff(made.mean((1, 2, 3))).round().tolist() == [40, 40, 40]
    assert sets.load_pairs(run, "gan").facts["trained_on"] == ["ISIC_1", "ISIC_2"]
    (source / "trained_on.csv").write_text("id\nISIC_1\n")
    path = next(iter(sorted((source / "generated").iterdir())))
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))  # what was read before is not kept
    external_generators.read(run, "gan", source, fit="squash")
    again, _, _ = sets.load(run / "generated" / "gan", "x")
    assert sets.load_pairs(run, "gan").facts["trained_on"] == ["ISIC_1"]
    assert (again != made).any(axis=(1, 2, 3)).tolist() == [True, False, False, False]
    next((source / "generated").iterdir()).unlink()
    with pytest.raises(InputError, match="1 of the 4 masks of S-test have no image"):
        external_generators.read(run, "gan", source, fit="squash")
    shutil.rmtree(source / "generated")
    external_generators.read(run, "gan", source, fit="squash")
    assert not (run / "generated" / "gan").exists()


@pytest.mark.parametrize("row, stopped", [(17, True), (13, True), (9, True), (2, False)])
def test_a_picture_of_s_among_them_stops_the_run(run, pictures, tmp_path, row, stopped):
    source = given_pairs(tmp_path / "gan", pictures, [22, row, 24])
    if not stopped:
        return external_generators.read(run, "gan", source, fit="squash")
    with pytest.raises(InputError, match=r"1\.jpg: it shows a picture of S. Remedy"):
        external_generators.read(run, "gan", source, fit="squash")


def test_what_is_not_used_of_a_set_is_said_at_once(run, pictures, tmp_path, capsys):
    source = given_pairs(tmp_path / "clinic", pictures, [22, 24, 25, 26, 27])
    (source / "masks" / "0.png").unlink()
    (source / "masks" / "stray.png").write_bytes(b"x")
    (source / "images" / "1.jpg").write_bytes(b"x")
    (source / "images" / "2.jpg").rename(source / "images" / "2.JPE")
    assert external_tests.read(run, "clinic", source, dataset.load(run), fit="squash") == 3
    said = capsys.readouterr().out
    for text in (
        "WARNING: files left out (a mask without image): 1, for example",
        "WARNING: 1 quarantined (no mask of the same stem)",
        "WARNING: 1 quarantined (the image is corrupt",
        "3 of 5 images are used",
    ):
        assert text in said
    external_generators.read(run, "gan", source, fit="squash")
    assert "WARNING: files left out" in capsys.readouterr().out


def test_an_id_in_two_sets_is_not_the_same_picture(run, pictures, tmp_path, capsys):
    source = given_pairs(tmp_path / "clinic", pictures, [22, 24])
    study = dataset.load(run)
    for folder, ending in (("images", "jpg"), ("masks", "png")):
        for k in range(2):
            name = f"{study.table['id'][k]}.{ending}"
            (source / folder / f"{k}.{ending}").rename(source / folder / name)
    assert external_tests.read(run, "clinic", source, study, fit="squash") == 2
    assert "also in the study" not in capsys.readouterr().out


def test_a_test_set_is_read_without_what_the_study_knows(run, pictures, tmp_path, capsys):
    source = given_pairs(tmp_path / "clinic", pictures, [22, 3, 24, 25])
    study, options = dataset.load(run), {"fit": "squash"}
    assert external_tests.read(run, "clinic", source, study, **options) == 3
    assert "1 of 4 pictures are also in the study, for example 1" in capsys.readouterr().out
    images, whole, ids = external_tests.load(run, "clinic")
    assert list(ids) == ["0", "2", "3"] and len(images) == len(whole) == 3
    assert all(mask.shape == (SIZE, SIZE) and set(np.unique(mask)) == {0, 1} for mask in whole)
    known = given_pairs(tmp_path / "known", pictures, [3, 5])
    with pytest.raises(InputError, match="all of its pictures are in the study"):
        external_tests.read(run, "known", known, study, **options)


def test_masks_keep_their_own_resolution(run, pictures, tmp_path):
    source = given_pairs(tmp_path / "clinic", pictures, [22])
    large = cv2.resize(
        cv2.imread(str(pictures[1][22]), 0), (150, 150), interpolation=cv2.INTER_NEAREST
    )
    cv2.imwrite(str(source / "masks" / "0.png"), large)
    picture = cv2.resize(cv2.imread(str(pictures[0][22])), (150, 150))
    cv2.imwrite(str(source / "images" / "0.jpg"), picture)
    external_tests.read(run, "one", source, dataset.load(run), fit="squash")
    images, whole, _ = external_tests.load(run, "one")
    assert images.shape == (1, SIZE, SIZE, 3) and whole[0].shape == (150, 150)
    np.testing.assert_array_equal(whole[0], large > 128)


def test_folders_with_nothing_usable_are_one_clear_error(run, tmp_path):
    with pytest.raises(InputError, match="images: the folder does not exist"):
        external_generators.read(run, "gan", tmp_path / "nowhere", fit="squash")


def test_examples_are_one_from_each_quarter_of_areas_and_the_same_for_a_seed():
    shapes = recipe.random_masks(41, 32, seed=2)
    rows = dataset.examples(shapes, 4, seed=5)
    areas = shapes.mean((1, 2))
    bounds = np.sort(areas)[[10, 20, 30]]
    assert np.digitize(areas[rows], bounds, right=True).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(rows, dataset.examples(shapes, 4, seed=5))
    assert any((rows != dataset.examples(shapes, 4, seed=s)).any() for s in (1, 2, 3))
