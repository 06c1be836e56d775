"""Distances of sets with known answers: same distribution, shifted Gaussians, planted copies."""

import cv2
import numpy as np
import pytest
import torch

from lesionlib.data import duplicates, phantom
from lesionlib.engine.errors import InputError
from lesionlib.evaluation import distribution


def normal(n, d=16, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, (n, d))


def test_kid_of_one_distribution_is_zero_whatever_n_and_grows_when_one_side_moves():
    means = [
        distribution.kid(normal(n, seed=1), normal(n, seed=2), 50, n // 2)[0]
        for n in (100, 400, 1000)
    ]
    spread = distribution.kid(normal(400, seed=1), normal(400, seed=2), 50, 200)[1]
    assert all(abs(mean) < 3 * spread for mean in means)
    near, far = (distribution.kid(normal(300), normal(300, mean=m, seed=1))[0] for m in (0.2, 0.6))
    assert 5 * spread < near < far / 2


def test_kid_is_unbiased():
    values = [
        distribution.mmd(normal(20, seed=2 * i), normal(20, seed=2 * i + 1)) for i in range(600)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(600)


def test_fid_is_the_closed_form_of_gaussians_and_biased_by_few_images():
    moved = distribution.fid(normal(20000, 4), normal(20000, 4, mean=1.0, seed=1))
    assert moved == pytest.approx(4, rel=0.05)
    wide = distribution.fid(normal(20000, 4), 3 * normal(20000, 4, seed=1))
    assert wide == pytest.approx(4 * (3 - 1) ** 2, rel=0.05)
    few, many = (distribution.fid(normal(n, 32, seed=1), normal(n, 32, seed=2)) for n in (60, 2000))
    assert few > 5 * many > 0


def test_precision_recall_density_coverage_of_known_sets():
    same = distribution.prdc(normal(400, 4, seed=1), normal(400, 4, seed=2))
    assert all(0.85 < same[name] < 1.15 for name in ("precision", "recall", "density", "coverage"))
    apart = distribution.prdc(normal(100, 4), normal(100, 4, mean=50.0))
    assert apart == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    narrow = distribution.prdc(normal(400, 4), 0.05 * normal(400, 4, seed=1))  # a collapsed mode
    assert narrow["precision"] == 1 and narrow["recall"] < 0.1 and narrow["coverage"] < 0.2


def test_nearest_finds_a_planted_copy():
    real, made = normal(50), normal(5, seed=9)
    made[3] = real[17]
    distance, index = distribution.nearest(made, real)
    assert distance[3] == 0 and index[3] == 17 and (np.delete(distance, 3) > 0.5).all()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.write_dataset(folder, 30, 64, workers=1)
    paths = sorted((folder / "ISIC2018_Task1-2_Training_Input").glob("*.jpg"))
    return np.stack([cv2.imread(str(path))[..., ::-1] for path in paths])


def test_planted_copies_are_flagged_and_no_others(pictures):
    real, made = pictures[:18], pictures[18:].copy()
    made[2] = real[5]
    made[4] = real[7][:, ::-1]
    _, code = cv2.imencode(".jpg", np.ascontiguousarray(real[9]), [cv2.IMWRITE_JPEG_QUALITY, 60])
    made[8] = cv2.imdecode(code, cv2.IMREAD_COLOR)
    found = duplicates.copies(real, made)
    assert sorted(zip(found["made"], found["real"], strict=True)) == [(2, 5), (4, 7), (8, 9)]


def test_features_do_not_depend_on_the_batch_and_tell_pictures_apart(pictures):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", pretrained=False, num_classes=3)
    one, many = (distribution.features(model, pictures, batch) for batch in (1, 30))
    assert one.shape == (30, model.num_features)
    np.testing.assert_allclose(one, many, rtol=1e-3, atol=1e-4)
    assert distribution.nearest(one, many)[1].tolist() == list(range(30))


def test_compare_states_n_and_has_every_measure():
    found = distribution.compare(normal(60), normal(80, seed=1))
    assert found["n"] == 60 and abs(found["kid"]) < 5 * found["kid_sd"]
    assert {"fid", "precision", "recall", "density", "coverage"} < set(found)


def test_diversity_and_pixel_distances_by_hand():
    black, white = (np.full((1, 40, 40, 3), v, np.uint8) for v in (0, 255))
    flat = distribution.pixels(np.concatenate([black, white, black]))
    assert flat.shape == (3, 32 * 32 * 3)
    assert distribution.nearest(flat[:1], flat[1:2])[0][0] == pytest.approx(1)  # an RMSE of all
    assert distribution.diversity(flat, [0, 1, 0]) == 0
    assert distribution.diversity(flat, [0, 0, 0]) == pytest.approx(2 / 3)


def test_half_the_images_show_how_much_of_a_fid_is_a_matter_of_n():
    found = distribution.compare(normal(100, 32), normal(400, 32, seed=1))
    assert found["fid_half"] > 1.5 * found["fid"] > 0


def test_inception_is_used_where_its_weights_are_and_its_absence_is_one_clear_error(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="or set features to domain"):
        distribution.extractor("inception", tmp_path)
    import torchvision

    path = tmp_path / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    path.parent.mkdir()
    torch.save(torchvision.models.inception_v3(init_weights=False).state_dict(), path)
    see, called = distribution.extractor("inception", tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    found = see(images)
    assert found.shape == (2, 2048) and called == "Inception v3 (torchvision)"
    np.testing.assert_allclose(found[1:], see(images[1:]), rtol=1e-3, atol=1e-4)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="no Inception v3 weights could be read"):
        distribution.extractor(str(path), tmp_path)
