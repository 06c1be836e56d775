"""Segmentation: the grid, the loss by hand, training, its repetition, and what is cached."""

import json
import os
import signal
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lesionlib import engine
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import Log
from lesionlib.engine.settings import Evaluation, Segmentation
from lesionlib.engine.training import Files
from lesionlib.evaluation import distribution
from lesionlib.segmentation import cells, measures, networks, training
from lesionlib.segmentation.grid import Cell
from lesionlib.segmentation.measures import dice

Pairs = namedtuple("Pairs", "images masks")
SMALL = training.Recipe(
    batch=8, lr=1e-2, encoder="timm-mobilenetv3_small_minimal_100", decoder=(32, 16, 8)
)


def discs(n, seed, size=32):
    """Bright discs on a dark noisy ground: images (n, size, size, 3), masks, ids."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centres, radii = rng.uniform(10, size - 10, (n, 2)), rng.uniform(5, 9, n)
    masks = np.stack(
        [(y - a) ** 2 + (x - b) ** 2 < r**2 for (a, b), r in zip(centres, radii, strict=True)]
    ).astype(np.uint8)
    noise = rng.integers(0, 60, (n, size, size, 3))
    return (noise + 150 * masks[..., None]).astype(np.uint8), masks, [f"{i:03d}" for i in range(n)]


def files(folder):
    return Files(folder / "checkpoint.pt", folder / "log.csv")


def fitted(folder, seed=0, epochs=2, network="unet", n=8, **options):
    part, val_part, recipe = discs(n, 0)[:2], discs(4, 1)[:2], replace(SMALL, **options)
    how = dict(seed=seed, steps=training.count_steps(n, epochs, recipe.batch), files=files(folder))
    return training.train(network, part, val_part, recipe, key="k", **how)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Several threads wait for one another where cores are shared: seconds become minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def parts():
    return {"S-train": discs(6, 0)[:2], "S-val": discs(3, 1)[:2]}


@pytest.fixture
def tests():
    """S-test, whose masks are twice as large as the images, and another test set."""
    images, masks, ids = discs(4, 2)
    others, small, names = discs(2, 8)
    return {
        "S-test": (images, masks.repeat(2, 1).repeat(2, 2), ids),
        "clinic": (others, small, names),
    }


def cell(method="real", amount=0, share=100, schedule="epochs", seed=0, network="unet"):
    return Cell(network, method, amount, share, schedule, seed)


def test_an_unknown_network_is_named_with_the_valid_ones():
    with pytest.raises(ValueError, match="'vnet'; there are: unet, unet_imagenet, dcsaunet"):
        networks.build("vnet")


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_networks_map_images_to_logits(network):
    model = networks.build(network).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_the_imagenet_encoder_computes_what_its_weights_computed():
    """Their normalisation, mean and standard deviation 0.5, is folded into the first layer."""
    whole = distribution.imagenet_model()
    encoder = networks.build("unet_imagenet", decoder_channels=(32, 16)).encoder.eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = whole.blocks[:2](whole.bn1(whole.conv_stem(images / 127.5 - 1)))
        ours = encoder(networks.inputs(images))[-1]
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_dice_loss_by_hand():
    target = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    even = networks.dice_loss(torch.zeros(1, 1, 2, 2), target)  # probability 1/2 everywhere
    assert even.item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    right = networks.dice_loss(40 * target - 20, target)
    assert right.item() == pytest.approx(0, abs=1e-6)
    wrong = networks.dice_loss(20 - 40 * target, target)
    assert wrong.item() == pytest.approx(1 - 1 / 5)


def test_dice_loss_pools_the_batch_as_smp_does():
    from segmentation_models_pytorch.losses import DiceLoss

    logits = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    target = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    theirs = DiceLoss("binary", from_logits=True, smooth=0.5)(logits, target)  # they double it
    assert networks.dice_loss(logits, target).item() == pytest.approx(theirs.item(), abs=1e-6)


def test_augmentation_reaches_eight_positions_and_moves_image_and_mask_together():
    pair = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(200, 2, 1, 1)
    moved = networks.augment(pair, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert len(torch.unique(moved[:, 0].flatten(1), dim=0)) == 8
    assert (moved[:, 0].flatten(1).sort().values == torch.arange(4)).all()


def augmented(pairs, seed=0, **options):
    """Pairs (B, 4, S, S) with warps, their masks thresholded as in training."""
    found = networks.augment(pairs, torch.Generator().manual_seed(seed), **options)
    return found[:, :3], (found[:, 3] > 0.5).numpy().astype(np.uint8)


def test_classical_augmentation_moves_the_lesion_and_its_mask_together_and_changes_colours():
    images, masks, _ = discs(1, 0)
    lesion = np.where(masks[..., None], 255, 0).astype(np.uint8).repeat(3, -1)
    pairs = np.concatenate([lesion, masks[..., None]], -1).repeat(60, 0).transpose(0, 3, 1, 2)
    pairs = torch.from_numpy(pairs.copy())
    moved, lesions = augmented(pairs, settings=networks.CLASSICAL, colour=networks.COLOUR)
    assert moved.dtype == torch.float32 and moved.min() >= 0 and moved.max() <= 255
    seen = moved.mean(1)
    bright = seen > (seen.amin((1, 2)) + seen.amax((1, 2)))[:, None, None] / 2
    assert dice(bright.numpy(), lesions).min() > 0.95
    areas = lesions.sum((1, 2)) / masks.sum()
    assert areas.min() < 0.8 and areas.max() > 1.25  # 0.64 to 1.56 by scaling alone
    brightest = seen.amax((1, 2))
    assert brightest.min() < 230 and len(brightest.unique()) > 20
    plain, same = augmented(pairs, settings=networks.CLASSICAL)
    assert np.array_equal(same, lesions) and plain.amax() > 254  # the geometry is drawn first


def test_colours_change_in_brightness_contrast_and_saturation_and_grey_stays_grey():
    grey = torch.linspace(60, 160, 64).reshape(1, 1, 8, 8).repeat(50, 3, 1, 1)
    changed = networks.recoloured(grey, 0.2, torch.Generator().manual_seed(0))
    assert (changed - changed[:, :1]).abs().max() < 1e-3
    light = changed.mean((1, 2, 3)) / 110
    assert 0.8 <= light.min() < 0.85 and 1.15 < light.max() <= 1.2001
    contrast = changed.std((1, 2, 3)) / light / grey[0].std()
    assert 0.8 <= contrast.min() < 0.85 and 1.15 < contrast.max() <= 1.2001
    red = grey * torch.tensor([1.2, 0.9, 0.9]).reshape(1, 3, 1, 1)
    changed = networks.recoloured(red, 0.2, torch.Generator().manual_seed(0))
    saturation = (changed[:, 0] - changed[:, 1]).mean((1, 2)) / changed.mean((1, 2, 3)) / 0.3
    assert saturation.min() < 0.87 and saturation.max() > 1.13


def test_warps_are_drawn_anew_for_each_and_repeat_with_their_seed(tmp_path):
    pairs = torch.from_numpy(discs(1, 0)[0]).permute(0, 3, 1, 2)
    pairs = torch.cat([pairs, (pairs[:, :1] > 100).to(torch.uint8)], 1).repeat(5, 1, 1, 1)
    options = dict(settings=networks.CLASSICAL, colour=networks.COLOUR)
    one, again, other = (augmented(pairs, seed, **options)[0] for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert len(torch.unique(one.flatten(1), dim=0)) == 5
    images, masks, _ = discs(16, 2)
    classical = dict(warps=networks.CLASSICAL, colour=networks.COLOUR)
    found = training.predict(fitted(tmp_path, epochs=20, n=16, **classical), images)
    assert dice(found, masks).mean() > 0.8


def test_a_recipe_names_all_that_determines_the_weights():
    recipe = replace(SMALL, warps=networks.CLASSICAL)
    facts = recipe.determining()
    assert json.loads(json.dumps(facts)) == facts
    unused = networks.CLASSICAL.model_copy(update={"variants": 3, "trainings": []})
    assert replace(recipe, warps=unused).determining() == facts
    for field, value in (("share", 0.5), ("angle", 9.0), ("scale", [0.5, 1.0]), ("shift", 0.3)):
        changed = networks.CLASSICAL.model_copy(update={field: value})
        assert replace(recipe, warps=changed).determining() != facts
    for change in (dict(colour=0.3), dict(decay="cosine"), dict(warps=None)):
        assert replace(recipe, **change).determining() != facts


def test_training_separates_what_is_separable(tmp_path):
    model = fitted(tmp_path, epochs=20, n=16)
    images, masks, _ = discs(16, 2)
    found = training.predict(model, images, batch=5)
    assert found.dtype == np.uint8 and found.shape == masks.shape
    assert dice(found, masks).mean() > 0.9
    log = Log.read(tmp_path / "log.csv")
    assert [int(row["step"]) for row in log] == list(range(4, 41, 4))


def test_the_best_validation_is_returned(tmp_path):
    model = fitted(tmp_path, epochs=8, lr=3e-2)
    images, masks, _ = discs(4, 1)
    best = max(float(row["val_dice"]) for row in Log.read(tmp_path / "log.csv"))
    assert dice(training.predict(model, images), masks).mean() == pytest.approx(best, abs=1e-5)


def weights(model):
    return torch.cat([value.float().flatten() for value in model.state_dict().values()])


def test_training_is_repeatable_and_depends_on_the_seed(tmp_path):
    images = discs(4, 3)[0]
    first, again, other = (fitted(tmp_path, seed) for seed in (0, 0, 1))
    assert torch.equal(weights(first), weights(again))
    assert np.array_equal(training.predict(first, images), training.predict(again, images))
    assert not torch.equal(weights(first), weights(other))


def test_the_moving_average_is_validated_and_returned(tmp_path):
    """After n times it keeps a share of n / (n + 1) to the power of 1 / averaging."""

    def averaged(model):
        """What is averaged: all but the numbers of batches."""
        state = model.state_dict().values()
        return torch.cat([x.flatten() for x in state if x.is_floating_point()])

    seen, parts = [], (discs(8, 0)[:2], discs(4, 1)[:2])
    recipe = replace(SMALL, averaging=0.5)
    task = training.Segmentation("unet", *parts, recipe, 0, 11)
    for step in range(11):
        task.before(step)
        if step and step % training.AVERAGE_EVERY == 0:
            seen.append(averaged(task.model))
        for _ in task.gradients(step):
            task.update()
    score = task.validate(11)["val_dice"]
    seen.append(averaged(task.model))
    expected = seen[0] / 4 + seen[1] * 3 / 4
    expected = expected * 4 / 9 + seen[2] * 5 / 9
    model = task.finish()
    torch.testing.assert_close(averaged(model), expected, rtol=1e-4, atol=1e-6)
    images, masks = parts[1]
    assert dice(training.predict(model, images), masks).mean() == pytest.approx(score)


@pytest.mark.parametrize("averaging", [0, 0.2])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, averaging):
    whole, own = fitted(tmp_path / "whole", epochs=4, averaging=averaging), tmp_path / "own"
    monkeypatch.setattr(engine.training, "SAVE_AFTER", 0)
    calls, predict = [], training.predict

    def stop_at_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*args)

    monkeypatch.setattr(training, "predict", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        fitted(own, epochs=4, averaging=averaging)
    resumed = fitted(own, epochs=4, averaging=averaging)
    assert len(calls) == 3 + 2  # the third and fourth epoch only
    assert torch.equal(weights(whole), weights(resumed))
    assert Log.read(files(tmp_path / "whole").log) == Log.read(files(own).log)


def test_told_to_stop_between_two_validations_it_ends_as_an_uninterrupted_one(
    tmp_path, monkeypatch
):
    whole, own = fitted(tmp_path / "whole", epochs=4, averaging=0.2), tmp_path / "own"
    calls, loss = [], training.Segmentation.loss

    def told_at_third(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*args)

    monkeypatch.setattr(training.Segmentation, "loss", told_at_third)
    with pytest.raises(InputError, match=r"was stopped \(SIGTERM\).* after step 3"):
        fitted(own, epochs=4, averaging=0.2)
    resumed = fitted(own, epochs=4, averaging=0.2)
    assert torch.equal(weights(whole), weights(resumed))
    assert Log.read(files(tmp_path / "whole").log) == Log.read(files(own).log)


@pytest.mark.parametrize(("n", "batch"), [(5, 4), (1, 4), (3, 1)])
def test_no_batch_is_too_small_for_batch_normalisation(n, batch, tmp_path):
    fitted(tmp_path, network="dcsaunet", epochs=1, n=n, batch=batch)


def batches(mixing, batch=8, real=20, made=40, steps=30):
    images, masks, _ = discs(real + made, 0)
    recipe = replace(SMALL, batch=batch, mixing=mixing, real=real)
    task = training.Segmentation("unet", (images, masks), (images[:2], masks[:2]), recipe, 0, steps)
    return [task.rows(step) for step in range(steps)]


def test_pairs_are_mixed_as_the_recipe_says():
    added, first, mixed = (batches(mixing) for mixing in ("added", "first", "mixed"))
    assert all(len(rows) == 8 for rows in [*added, *first, *mixed])
    real = [[int((rows < 20).sum()) for rows in some] for some in (added, first, mixed)]
    assert 0.25 < np.mean(real[0]) / 8 < 0.42 and len(set(real[0])) > 1
    assert real[1] == [0] * 15 + [8] * 15 and real[2] == [4] * 30
    for some in (torch.cat(first[:5]), torch.cat([rows[4:] for rows in mixed[:10]])):
        assert sorted(some.tolist()) == list(range(20, 60))  # an epoch of the synthetic pairs
    assert sorted(torch.cat(first[15:20]).tolist()) == sorted(2 * list(range(20)))


def test_the_halves_of_a_mixed_batch_are_drawn_independently():
    """With as many real as synthetic pairs, equal streams would always draw pairs i and i."""
    rows = torch.cat(batches("mixed", real=20, made=20)).reshape(-1, 2, 4)
    assert (rows[:, 0] == rows[:, 1] - 20).float().mean() < 0.2


def test_steps():
    assert training.count_steps(70, 10, 16) == 50
    assert training.count_steps(5, 3, 256) == 3


def test_unusable_arrays_are_refused(tmp_path):
    images, masks, _ = discs(4, 0)
    good = (images, masks)
    for bad in ((images / 255, masks), (images, masks * 255), (images[:0], masks[:0])):
        with pytest.raises(ValueError, match="training part"):
            how = dict(seed=0, steps=1, files=files(tmp_path), key="k")
            training.train("unet", bad, good, SMALL, **how)


def grid_settings(epochs=1, tolerance=0.05, **more):
    """The groups that cells read, with the small network."""
    own = Segmentation(
        batch=SMALL.batch,
        lr=SMALL.lr,
        epochs=epochs,
        segmentation_size=32,
        unet_encoder=SMALL.encoder,
        unet_decoder=list(SMALL.decoder),
        **more,
    )
    return SimpleNamespace(segmentation=own, evaluation=Evaluation(surface_tolerance=tolerance))


@pytest.fixture
def data(parts, tests):
    images, masks, _ = discs(5, 4)
    synthetic = {"controlnet": (images, masks, np.linspace(0, 1, 5))}
    return cells.CellData(parts | {"G": discs(4, 5)[:2]}, synthetic, tests, {"data": "a"})


def grid_of(data, folder, **options):
    return cells.Grid(data, grid_settings(**options), folder)


def test_a_cell_is_trained_once_and_again_when_its_key_changes(tmp_path, data, monkeypatch):
    one = cell("controlnet", 3)
    first, curve = grid_of(data, tmp_path).result(one)
    assert list(first) == [
        *("network", "method", "amount", "share", "schedule", "seed", "generator", "test", "id"),
        *measures.MEASURES,
        *("tp", "fp", "fn", "pairs", "steps", "val_dice", "plateau"),
    ]
    assert list(first["test"]) == ["S-test"] * 4 + ["clinic"] * 2
    assert list(first["id"]) == ["000", "001", "002", "003", "000", "001"]
    assert set(first["steps"]) == {2} and set(first["pairs"]) == {9}  # 1 step of 6, so 2 of 9
    assert curve["step"].tolist() == [1, 2] and curve["val_dice"].max() == pytest.approx(
        first["val_dice"][0], abs=1e-5
    )
    sizes = []

    def refuse(network, part, val_part, recipe, *, steps, **options):
        warps = "flips" if recipe.warps is None else "classical"
        sizes.append((len(part[0]), steps, warps, recipe.mixing))
        raise RuntimeError("it trains")

    monkeypatch.setattr(training, "train", refuse)
    again, same = grid_of(data, tmp_path).result(one)
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    pd.testing.assert_frame_equal(same, curve)
    assert grid_of(data, tmp_path, plateau_gain=0.5).result(one)  # it names no other training
    for number, changed, options in (
        (one, {"inputs": {"data": "b"}}, {}),
        (one, {}, {"epochs": 2}),
        (one, {}, {"tolerance": 0.1}),
        (cell("controlnet", 3, schedule="steps"), {}, {}),
        (cell(), {}, {}),
        (cell("classical"), {}, {}),
        (cell("controlnet", 3, 50), {}, {}),
        (cell("controlnet", 3, 0), {}, {}),
        (cell("controlnet", 3, seed=1), {}, {}),
        (cell("controlnet_shuffled", 3), {}, {}),
        (cell("controlnet_first", 3), {}, {}),
        (cell("real_pairs", 50), {}, {}),
    ):
        with pytest.raises(RuntimeError, match="it trains"):
            grid_of(replace(data, **changed), tmp_path, **options).result(number)
    assert sizes == [
        (9, 2, "flips", "added"),
        (9, 3, "flips", "added"),
        (9, 2, "flips", "added"),
        (9, 1, "flips", "added"),
        (6, 1, "flips", "added"),
        (6, 1, "classical", "added"),
        (6, 1, "flips", "added"),
        (3, 1, "flips", "added"),
        (9, 2, "flips", "added"),
        (9, 2, "flips", "added"),
        (9, 2, "flips", "first"),
        (8, 1, "flips", "added"),
    ]


def test_both_schedules_of_s_train_alone_are_one_training(tmp_path, data):
    grid = grid_of(data, tmp_path)
    one, same = (grid.result(cell(schedule=name))[0] for name in ("epochs", "steps"))
    assert len(list(tmp_path.glob("*.csv"))) == 1
    assert one["dice"].equals(same["dice"]) and set(same["schedule"]) == {"steps"}


def test_how_long_all_are_trained_follows_from_the_plateau_of_s_train_alone(
    tmp_path, data, monkeypatch
):
    def made_up(artefact, one, part, data, recipe):
        steps = artefact.settings["steps"]
        asked = [steps * (i + 1) // 20 for i in range(20)]
        curve = [(step, 0.8 if step >= plateau_at else 0.5) for step in asked]
        artefact.path.parent.mkdir(exist_ok=True)
        artefact.path.write_text("id,test,steps\na,S-test,1\n")
        artefact.record(curve=curve)

    monkeypatch.setattr(cells, "train_and_measure", made_up)
    for plateau_at, alone, more in ((30, 53, 80), (95, 100, 150)):
        grid = grid_of(data, tmp_path / str(plateau_at), epochs=0, most_steps=100)
        assert grid.steps(cell(), 6) == grid.steps(cell(schedule="steps"), 9) == alone
        assert grid.steps(cell("controlnet", 3), 9) == more  # equal epochs of half as many again
        assert grid.steps(cell(schedule="plateau"), 6) == 100
    rows, _ = grid.result(cell(schedule="steps"))
    assert rows["plateau"].isna().all()
    assert grid_of(data, tmp_path, epochs=3).budget("unet") == 3


def test_every_cell_is_written_and_a_network_without_a_plateau_is_named(
    tmp_path, tests, monkeypatch, capsys
):
    study = SimpleNamespace(part=lambda name: Pairs(*discs(4, 0)[:2]))
    curve = pd.DataFrame({"step": [1, 2], "val_dice": [0.5, 0.6]})

    def made_up(grid, one):
        begin = np.nan if one.network == "dcsaunet" else 1
        return pd.DataFrame({"id": ["a"], "dice": [0.5], "plateau": [begin]}), curve

    monkeypatch.setattr(cells.Grid, "result", made_up)
    settings = grid_settings(epochs=0, most_steps=7)
    todo = [cell(schedule="plateau", network=n) for n in ("unet", "dcsaunet")] + [cell()]
    rows, curves = cells.run_cells(todo, study, {}, tests, settings, tmp_path)
    assert len(rows) == 3 and curves["cell"].tolist() == [c.id for c in todo for _ in range(2)]
    assert {path.stem for path in (tmp_path / "cells").glob("*.csv")} == {c.id for c in todo}
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert len(said) == 1 and "dcsaunet has no plateau within `most_steps`, 7 steps" in said[0]


def test_every_training_says_where_its_plateau_begins():
    steps = np.arange(10, 101, 10)
    curves = pd.concat(
        pd.DataFrame({"step": steps, "val_dice": dice}).assign(cell=name, network="unet")
        for name, dice in (("a", np.where(steps < 40, 0.5, 0.8)), ("b", steps / 200))
    )
    found = cells.learnt(curves, gain=0.01).set_index("cell")
    assert found["plateau"]["a"] == 50 and np.isnan(found["plateau"]["b"])
    assert found["val_dice"].tolist() == [0.8, 0.5] and set(found["steps"]) == {100}


def test_training_parts_are_a_share_of_s_train_and_what_is_added():
    images, masks, _ = discs(10, 0)
    made, shapes, _ = discs(5, 4)
    others, outlines, _ = discs(8, 6)
    data = cells.CellData(
        {"S-train": (images, masks), "G": (others, outlines)},
        {"controlnet": (made, shapes, [0.1, 0.9, 0.3, 0.9, 0.5])},
        {},
    )
    for one, real, added in (
        (cell(), 10, []),
        (cell("controlnet", 3), 10, [0, 1, 2]),
        (cell("controlnet_mixed", 3), 10, [0, 1, 2]),
        (cell("controlnet", 2, 0), 0, [0, 1]),
        (cell("controlnet_best", 3), 10, [1, 3, 4]),
    ):
        found, number = cells.training_part(one, data)
        assert number == real
        np.testing.assert_array_equal(found[0], np.concatenate([images[:real], made[added]]))
        np.testing.assert_array_equal(found[1], np.concatenate([masks[:real], shapes[added]]))
    found, _ = cells.training_part(cell("controlnet_shuffled", 3), data)
    np.testing.assert_array_equal(found[0][10:], made[:3])
    np.testing.assert_array_equal(found[1][10:], shapes[[2, 0, 1]])  # none keeps its own


def test_shares_are_drawn_at_random_nested_and_alike_for_all_arms_of_a_seed():
    pairs = {name: (np.arange(n), np.arange(n) + 1000) for name, n in (("S-train", 580), ("G", 99))}
    data = cells.CellData(pairs, {"controlnet": (*np.full((2, 3), -1), [0, 0, 0])}, {})

    def drawn(share, method="real", amount=0, seed=0):
        one = replace(cell(method, amount, share), seed=seed)
        (images, masks), real = cells.training_part(one, data)
        return images, masks, real

    images, masks, real = drawn(25)
    assert real == len(images) == 145 and (np.diff(images) > 0).all()
    np.testing.assert_array_equal(masks, images + 1000)  # each keeps its own mask
    assert 180 < images.mean() < 400 and images.max() > 500  # not the first ones
    assert set(drawn(10)[0]) < set(images) < set(drawn(50)[0])
    assert set(drawn(25, seed=1)[0]) != set(images)  # so that seeds speak of the draw too
    np.testing.assert_array_equal(drawn(100)[0], np.arange(580))
    np.testing.assert_array_equal(drawn(25, "controlnet", 3)[0], [*images, -1, -1, -1])
    added = {}
    for percent, number in ((25, 25), (50, 50), (100, 99)):
        joined, others, real = drawn(25, "real_pairs", percent)
        np.testing.assert_array_equal(joined[:real], images)
        np.testing.assert_array_equal(others[real:], joined[real:] + 1000)
        added[percent] = set(joined[real:])
        assert len(added[percent]) == number
    assert added[25] < added[50] < added[100] and max(added[25]) > 60


def test_too_few_synthetic_pairs_are_refused():
    part = discs(4, 0)[:2]
    images, masks = part
    for sets, there in (({"pix2pixhd": (images[:3], masks[:3], [1, 1, 1])}, 3), ({}, 0)):
        with pytest.raises(InputError, match=f"needs 7 .* pix2pixhd; there are {there}"):
            data = cells.CellData({"S-train": part}, sets, {})
            cells.training_part(cell("pix2pixhd_best", 7), data)


def test_summary_and_table_by_hand():
    rows = pd.DataFrame(
        [
            ("unet", "real", 0, 100, "epochs", "S-test", seed, value)
            for seed, values in ((0, (0.5, 0.7)), (1, (0.8, 1.0)))
            for value in values
        ],
        columns=[*cells.ARM, "test", "seed", "dice"],
    )
    rows = rows.assign(
        generator="first",
        plateau=np.where(rows["seed"] == 0, 2.0, np.nan),
        **dict.fromkeys(measures.MEASURES[1:], 0.5),
        tp=0.2,
        fp=[0, 0.4] * 2,
        fn=0.0,
        pairs=6,
        steps=2,
        val_dice=0.9,
    )
    per_seed = cells.summary(rows)
    assert per_seed["dice"].tolist() == pytest.approx([0.6, 0.9])
    assert per_seed["dice_pooled"].tolist() == pytest.approx([0.8 / 1.2] * 2)
    assert per_seed["images"].tolist() == [2, 2] and per_seed["seed"].tolist() == [0, 1]
    table = cells.table2(per_seed)
    assert len(table) == 1 and table["seeds"].item() == 2 and table["steps"].item() == 2
    assert table["generators"].item() == 1 and table["unfinished"].item() == 1
    assert table["dice_mean"].item() == pytest.approx(0.75)
    assert table["dice_sd"].item() == pytest.approx(0.3 / 2**0.5)
    assert np.isnan(cells.table2(per_seed[:1])["dice_sd"].item())
