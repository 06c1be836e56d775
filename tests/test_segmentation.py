"""Segmentation: the grid, the loss by hand, training, its repetition, and what is cached."""

import numpy as np
import pandas as pd
import pytest
import torch

from lesionlib import segmentation
from lesionlib.errors import InputError
from lesionlib.files import Log
from lesionlib.metrics import dice
from lesionlib.segmentation import Cell, grid

SMALL = {"encoder": "timm-mobilenetv3_small_minimal_100", "decoder_channels": (32, 16, 8),
         "batch": 8, "lr": 1e-2}


def discs(n, seed, size=32):
    """Bright discs on a dark noisy ground: images (n, size, size, 3), masks, ids."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centres, radii = rng.uniform(10, size - 10, (n, 2)), rng.uniform(5, 9, n)
    masks = np.stack([(y - a) ** 2 + (x - b) ** 2 < r**2
                      for (a, b), r in zip(centres, radii, strict=True)]).astype(np.uint8)
    noise = rng.integers(0, 60, (n, size, size, 3))
    return (noise + 150 * masks[..., None]).astype(np.uint8), masks, [f"{i:03d}" for i in range(n)]


def fitted(seed=0, epochs=2, network="unet", n=8, **options):
    val = discs(4, 1)
    return segmentation.train(network, *discs(n, 0)[:2], *val[:2], epochs=epochs, seed=seed,
                              **{**SMALL, **options})


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Several threads wait for one another where cores are shared: seconds become minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def parts():
    return {"S-train": discs(6, 0), "S-val": discs(3, 1), "S-test": discs(4, 2)}


def test_the_grid_is_complete_and_in_order():
    cells = grid(["unet", "dcsaunet"], ["controlnet", "pix2pixhd"], [100, 300, 500], [0, 1, 2])
    assert len(cells) == len(set(cells)) == 2 * (1 + 2 * 3) * 3 == 42
    assert [cell.id for cell in cells[:4]] == ["unet-real-0-seed0", "unet-real-0-seed1",
                                               "unet-real-0-seed2", "unet-controlnet-100-seed0"]
    assert cells[20].id == "unet-pix2pixhd-500-seed2" and cells[21].id == "dcsaunet-real-0-seed0"


def test_ids_round_trip():
    cells = grid(segmentation.NETWORKS, ["controlnet", "pix2pixhd"], [5], [0, 12])
    assert [Cell.parse(cell.id) for cell in cells] == cells
    with pytest.raises(ValueError, match="unet-controlnet-100-seed0"):
        Cell.parse("nonsense")


def test_an_unknown_network_is_named_with_the_valid_ones():
    with pytest.raises(ValueError, match="'vnet'; there are: unet, dcsaunet"):
        segmentation.build("vnet")


@pytest.mark.parametrize("network", segmentation.NETWORKS)
def test_networks_map_images_to_logits(network):
    model = segmentation.build(network).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_dice_loss_by_hand():
    target = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    even = segmentation.dice_loss(torch.zeros(1, 1, 2, 2), target)  # probability 1/2 everywhere
    assert even.item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    right = segmentation.dice_loss(40 * target - 20, target)
    assert right.item() == pytest.approx(0, abs=1e-6)
    wrong = segmentation.dice_loss(20 - 40 * target, target)
    assert wrong.item() == pytest.approx(1 - 1 / 5)


def test_dice_loss_pools_the_batch_as_smp_does():
    from segmentation_models_pytorch.losses import DiceLoss

    logits = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    target = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    theirs = DiceLoss("binary", from_logits=True, smooth=0.5)(logits, target)  # they double it
    assert segmentation.dice_loss(logits, target).item() == pytest.approx(theirs.item(), abs=1e-6)


def test_augmentation_reaches_eight_positions_and_moves_image_and_mask_together():
    pair = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(200, 2, 1, 1)
    moved = segmentation.augment(pair, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert len(torch.unique(moved[:, 0].flatten(1), dim=0)) == 8
    assert (moved[:, 0].flatten(1).sort().values == torch.arange(4)).all()


def test_training_separates_what_is_separable(tmp_path):
    model = fitted(epochs=20, n=16, log_path=tmp_path / "log.csv")
    images, masks, _ = discs(16, 2)
    found = segmentation.predict(model, images, batch=5)
    assert found.dtype == np.uint8 and found.shape == masks.shape
    assert dice(found, masks).mean() > 0.9
    log = Log.read(tmp_path / "log.csv")
    assert [int(row["step"]) for row in log] == list(range(4, 41, 4))


def test_the_best_validation_is_returned(tmp_path):
    model = fitted(epochs=8, lr=3e-2, log_path=tmp_path / "log.csv")
    images, masks, _ = discs(4, 1)
    best = max(float(row["val_dice"]) for row in Log.read(tmp_path / "log.csv"))
    assert dice(segmentation.predict(model, images), masks).mean() == pytest.approx(best, abs=1e-5)


def weights(model):
    return torch.cat([value.float().flatten() for value in model.state_dict().values()])


def test_training_is_repeatable_and_depends_on_the_seed():
    images = discs(4, 3)[0]
    first, again, other = fitted(0), fitted(0), fitted(1)
    assert torch.equal(weights(first), weights(again))
    assert np.array_equal(segmentation.predict(first, images), segmentation.predict(again, images))
    assert not torch.equal(weights(first), weights(other))


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = fitted(epochs=4, log_path=tmp_path / "whole.csv")
    monkeypatch.setattr(segmentation, "SAVE_AFTER", 0)
    own = {"epochs": 4, "checkpoint": tmp_path / "c.pt", "key": "k", "log_path": tmp_path / "l.csv"}
    calls, predict = [], segmentation.predict

    def stop_at_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*args)

    monkeypatch.setattr(segmentation, "predict", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        fitted(**own)
    resumed = fitted(**own)
    assert len(calls) == 3 + 2  # the third and fourth epoch only
    assert torch.equal(weights(whole), weights(resumed))
    assert Log.read(tmp_path / "whole.csv") == Log.read(tmp_path / "l.csv")


@pytest.mark.parametrize(("n", "batch"), [(5, 4), (1, 4), (3, 1)])
def test_no_batch_is_too_small_for_batch_normalisation(n, batch):
    fitted(network="dcsaunet", epochs=1, n=n, batch=batch)


def test_steps():
    assert segmentation.steps_of(70, 10, 16) == 50
    assert segmentation.steps_of(5, 3, 256) == 3


def test_unusable_arrays_are_refused():
    images, masks, _ = discs(4, 0)
    good = (images, masks)
    for bad in ((images / 255, masks), (images, masks * 255), (images[:0], masks[:0])):
        with pytest.raises(ValueError, match="training part"):
            segmentation.train("unet", *bad, *good, epochs=1, seed=0, **SMALL)


def test_a_cell_is_trained_once_and_again_when_its_key_changes(tmp_path, parts, monkeypatch):
    cell, pairs = Cell("unet", "controlnet", 3, 0), discs(5, 4)[:2]
    options = {**SMALL, "epochs": 1}
    first = segmentation.run_cell(cell, parts, pairs, options, tmp_path, "a")
    assert list(first) == ["network", "method", "amount", "seed", "id", "dice", "steps", "seconds",
                           "val_dice"]
    assert list(first["id"]) == ["000", "001", "002", "003"]
    assert set(first["steps"]) == {2}  # 6 + 3 images in batches of 8
    sizes = []

    def refuse(network, images, *args, **options):
        sizes.append(len(images))
        raise RuntimeError("it trains")

    monkeypatch.setattr(segmentation, "train", refuse)
    pd.testing.assert_frame_equal(
        segmentation.run_cell(cell, parts, pairs, options, tmp_path, "a"), first, check_exact=True)
    for changed in ((options, "b"), ({**options, "epochs": 2}, "a")):
        with pytest.raises(RuntimeError, match="it trains"):
            segmentation.run_cell(cell, parts, pairs, changed[0], tmp_path, changed[1])
    with pytest.raises(RuntimeError, match="it trains"):
        segmentation.run_cell(Cell("unet", "real", 0, 0), parts, None, options, tmp_path, "a")
    assert sizes == [9, 9, 6]


def test_too_few_synthetic_pairs_are_refused(tmp_path, parts):
    cell = Cell("unet", "pix2pixhd", 7, 0)
    for pairs, there in ((discs(5, 4)[:2], 5), (None, 0)):
        with pytest.raises(InputError, match=f"needs 7 .* pix2pixhd; there are {there}"):
            segmentation.run_cell(cell, parts, pairs, {**SMALL, "epochs": 1}, tmp_path, "a")


def test_summary_and_table_by_hand():
    rows = pd.DataFrame([("unet", "real", 0, seed, value)
                         for seed, values in ((0, (0.5, 0.7)), (1, (0.8, 1.0)))
                         for value in values], columns=["network", "method", "amount", "seed",
                                                        "dice"])
    per_seed = segmentation.summary(rows)
    assert per_seed["dice"].tolist() == pytest.approx([0.6, 0.9])
    assert per_seed["images"].tolist() == [2, 2] and per_seed["seed"].tolist() == [0, 1]
    table = segmentation.table2(per_seed)
    assert len(table) == 1 and table["seeds"].item() == 2
    assert table["dice_mean"].item() == pytest.approx(0.75)
    assert table["dice_sd"].item() == pytest.approx(0.3 / 2**0.5)
    assert np.isnan(segmentation.table2(per_seed[:1])["dice_sd"].item())
