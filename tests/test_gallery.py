"""Every figure, drawn from made-up tables: no text on another, nothing cut off, one look each."""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.evaluation import claims, fidelity
from lesionlib.masks.recipe import Recipe
from lesionlib.report import charts, evidence, generated, plots, style, teaching

matplotlib.use("agg")
METHODS = ["controlnet", "pix2pixhd", "pix2pixhd_plus", "external_generator"]
PROMPT = "benign keratosis with pigment network, negative network and milia-like cysts"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def noise(*shape):
    return np.random.default_rng(0).normal(0, 0.05, shape)


def sheet():
    images = np.full((8, 16, 16, 3), 90, np.uint8)
    masks = np.zeros((8, 16, 16), np.uint8)
    masks[:, 4:9, 4:9] = 1
    rows = {"visual prompt": masks, "reconstructed": images, "Pix2PixHD+ (ours)": images}
    rows["of G, for external generator"] = images
    return plots.sheet(rows, [PROMPT] * 8, made=["Pix2PixHD+ (ours)"], masks={})


def one_row():
    return plots.sheet({"melanoma": np.zeros((6, 16, 16, 3), np.uint8)}, [PROMPT, *["nevus"] * 5])


def workflow():
    parts = {"G": 1594, "S-train": 700, "S-val": 100, "S-test": 200}
    networks = ["unet", "unet_imagenet", "dcsaunet"]
    return plots.workflow(
        parts, 5000, networks, ["controlnet", "pix2pixhd"], ["another", "one more"]
    )


def workflow_without_gan():
    return plots.workflow(dict.fromkeys(["G", "S-train", "S-val", "S-test"], 60), 200, ["unet"], [])


def attributes():
    shown = {name: np.arange(60) % (i + 2) == 0 for i, name in enumerate(ATTRIBUTES)}
    kinds = ["benign keratosis", "melanoma", "nevus", "squamous cell carcinoma", ""]
    return charts.attributes(pd.DataFrame({"diagnosis": kinds * 12, **shown}))


def parts():
    names = ["area (% of image)", "off centre (% of side)", "skin tone ITA (degrees)"]
    table = pd.DataFrame(100 * noise(50, 3), columns=names)
    return charts.boxes(dict.fromkeys(["G", "S-train", "S-val", "S-test"], table), names)


def mask_statistics():
    names = ["area", "column", "solidity", "contact"]
    table = pd.DataFrame(noise(50, 4) / 100, columns=names)
    return charts.boxes(dict.fromkeys(["real (G)", "paper", "fitted", "real (S)"], table), names)


def image_quality():
    measures = ["mse", "psnr_1", "ssim", "lpips"]
    table = pd.DataFrame(noise(20, 4), columns=measures)
    rows = pd.concat(
        table.assign(method=method, generator_seed=seed, id=range(20))
        for method in METHODS
        for seed in (0, 1)
    )
    compared = pd.concat(claims.compare_generators(rows, measure) for measure in measures)
    return charts.image_quality(rows, compared)


def mask_fidelity():
    table = pd.DataFrame({"dice": 0.8 + noise(30), "chance": 0.2 + noise(30)})
    trained = [f"{method}_seed1" for method in METHODS]
    sets = itertools.product(["real", *METHODS, *trained], fidelity.KINDS)
    sets = [*sets, ("base", fidelity.KINDS[0])]
    rows = pd.concat(table.assign(images=name, masks=kind) for name, kind in sets)
    return charts.mask_fidelity(rows, METHODS)


def curves():
    names = itertools.product(["unet", "dcsaunet", "unet_imagenet"], ["plateau", "steps"])
    table = pd.concat(
        pd.DataFrame({"step": [100, 20_000], "val_dice": [0.5, 0.8]}).assign(
            network=network, schedule=schedule, cell=f"{network} {schedule}"
        )
        for network, schedule in names
    )
    learnt = table.groupby(["network", "schedule"], as_index=False)["step"].mean()
    return evidence.curves(table, learnt.rename(columns={"step": "plateau"}))


def scores(network, schedule, arms):
    """Rows per image of arms (method, amount, share, number of real pairs)."""
    for i, (method, amount, share, pairs) in enumerate(arms):
        rows = pd.DataFrame({"id": range(20), "dice": 0.7 + i / 100 + noise(20)})
        rows = rows.assign(network=network, schedule=schedule, method=method, amount=amount)
        rows = rows.assign(share=share, pairs=pairs, generator="first")
        yield from (rows.assign(seed=seed, dice=rows["dice"] + seed / 100) for seed in range(3))


def added():
    arms = [("real", 0, 100, 580)]
    arms += [(method, amount, 100, 580) for method in METHODS for amount in (830, 2490, 4150)]
    cells = itertools.product(["unet", "unet_imagenet"], ["epochs", "steps"])
    images = pd.concat(rows for cell in cells for rows in scores(*cell, arms))
    return evidence.added(claims.table2_comparison(images))


def worths():
    shares = (10, 25, 50, 100)
    images = pd.concat(scores("unet", "steps", [("real", 0, n, 5.8 * n) for n in shares]))
    variants = [*METHODS, *(f"controlnet_{ending}" for ending in ("best", "shuffled", "mixed"))]
    arms = list(itertools.product(variants, (830, 4150)))
    table = pd.DataFrame(arms, columns=["method", "amount"]).assign(network="unet", start=145)
    table = table.assign(schedule="steps", dice=0.71, worth=40.0, low=-np.inf, high=200.0)
    return evidence.worths(images, table, "unet", "steps")


def elastic():
    return teaching.elastic(*teaching.deformed(64, 0, 1, Recipe()))


def recipe_values():
    return plots.sheet(teaching.recipe_values(32, 0, 2, Recipe()))


def denoising_strip():
    pictures = np.full((50, 16, 16, 3), 90, np.uint8)
    rows = dict.fromkeys(["noisy latents", "predicted, with mask"], pictures)
    mask = np.eye(16, dtype=np.uint8)
    times = np.linspace(999, 0, 50).astype(int)
    return teaching.denoising_strip(times, rows, {"predicted, with mask": mask})


def trained(folder, name, columns):
    rows = [dict.fromkeys(columns, 1 / step) | {"step": step} for step in range(100, 20_000, 900)]
    pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def controlnet_training(folder):
    trained(folder, "log", ["loss"])
    trained(folder, "validations", ["held_out_loss", "wrong_mask_loss", "mask_fidelity"])
    return generated.controlnet_training(folder)


def losses(folder):
    columns = ["d_real", "d_fake", "g_gan", "g_feat"]
    trained(folder, "log", columns)
    return generated.losses({"losses, coarse": folder, "losses, fine": folder}, columns)


PLAIN = [
    sheet,
    one_row,
    workflow,
    workflow_without_gan,
    attributes,
    parts,
    mask_statistics,
    image_quality,
]
PLAIN += [mask_fidelity, curves, added, worths]
PLAIN += [elastic, recipe_values, denoising_strip, teaching.zero_convolution]
OF_LOGS = [controlnet_training, losses]


def texts(fig, monkeypatch):
    """The texts that are drawn, with their boxes in pixels, frames included."""
    drawn, draw = {}, Text.draw

    def draw_and_note(self, renderer, *args, **kwargs):
        if self.get_text().strip() and self.get_visible():
            box = self.get_bbox_patch() or self
            drawn[id(self)] = self.get_text(), box.get_window_extent(renderer), self.get_fontsize()
        return draw(self, renderer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", draw_and_note)
        fig.canvas.draw()
    return list(drawn.values())


def problems(fig, monkeypatch):
    """What cannot be read in a figure, in words."""
    found = texts(fig, monkeypatch)
    inside = fig.bbox.padded(0.5)
    said = [f"clipped: {text}" for text, box, _ in found
            if not (inside.contains(*box.min) and inside.contains(*box.max))]  # fmt: skip
    said += [f"small: {text}" for text, _, size in found if size < 8]
    for (one, a, _), (other, b, _) in itertools.combinations(found, 2):
        if a.padded(-0.5).overlaps(b.padded(-0.5)):
            said.append(f"overlap: {one} | {other}")
    legends = [*fig.legends, *(axis.get_legend() for axis in fig.axes)]
    for legend, axis in itertools.product(filter(None, legends), fig.axes):
        if legend.get_window_extent().padded(-0.5).overlaps(axis.get_window_extent().padded(-0.5)):
            said.append("a legend covers an axis")
    return said


@pytest.mark.parametrize("draw", [*PLAIN, *OF_LOGS], ids=lambda draw: draw.__name__)
def test_texts_neither_overlap_nor_leave_the_figure(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "display", lambda picture: None)
    fig = draw(tmp_path) if draw in OF_LOGS else draw()
    plots.show(fig, None, "one", "n = 3")  # narrows it to the page
    for version in filter(None, (fig, getattr(fig, "public", None))):
        assert version.get_figwidth() <= style.PAGE + 1e-6
        assert problems(version, monkeypatch) == []


@pytest.mark.parametrize("draw, ending", [(attributes, {".png", ".svg"}), (one_row, {".png"})])
def test_figures_without_pictures_are_vectors_too(draw, ending, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "display", lambda picture: None)
    plots.show(draw(), tmp_path, "one", "n = 3")
    assert {path.suffix for path in (tmp_path / "figures").glob("one.*")} == ending


def test_the_gallery_sees_overlaps_clipped_texts_and_covering_legends(monkeypatch):
    fig, axis = plt.subplots(figsize=(3, 2), layout="none")
    axis.plot([0, 1], label="curve")
    fig.text(0.5, 0.5, "one", fontsize=6)
    fig.text(0.52, 0.5, "two")
    fig.text(0.95, 0.6, "a long text")
    axis.legend()
    said = problems(fig, monkeypatch)
    assert {"small: one", "overlap: one | two", "clipped: a long text"} <= set(said)
    assert "a legend covers an axis" in said


def test_all_figures_give_a_method_the_same_colour_and_marker_and_no_two_share_one():
    looks = style.looks(METHODS)
    pairs = [(one["color"], one["marker"]) for one in style.looks([*style.METHODS, "x"]).values()]
    assert len(set(pairs)) == len(pairs)
    for draw in (image_quality, mask_fidelity, added, worths):
        lines = [line for axis in draw().axes for line in axis.get_lines()]
        seen = {(line.get_color(), line.get_marker()) for line in lines}
        assert {(look["color"], look["marker"]) for look in looks.values()} <= seen, draw.__name__


def test_every_training_of_a_generator_has_a_row_beneath_the_first():
    labels = mask_fidelity().axes[0].get_yticklabels()
    shown = [" ".join(label.get_text().split()) for label in labels]
    first = shown.index("ControlNet")
    assert shown[first : first + 3] == ["ControlNet", "ControlNet, seed 1", "Pix2PixHD"]


@pytest.mark.parametrize("name", ["controlnet_best", "controlnet_seed1", "controlnet_best_seed1"])
def test_a_variant_has_its_methods_colour_and_a_hollow_marker(name):
    found = style.looks([name, "controlnet", "b", "a"])
    variant, method = found[name], found["controlnet"]
    assert (variant["color"], variant["marker"]) == (method["color"], method["marker"])
    assert variant["markerfacecolor"] == "white" != method["markerfacecolor"]
    assert list(found) == [name, "controlnet", "b", "a"]
    assert found["a"] == style.looks(["a", "b"])["a"] != found["b"]


def test_axes_name_quantities_not_columns():
    labels = [axis.get_xlabel() for axis in image_quality().axes]
    assert labels == ["MSE", "PSNR (dB)", "SSIM", "LPIPS"]
    assert style.label("of_no_table") == "of_no_table"


def test_means_and_intervals_are_those_of_the_table_and_points_are_dodged():
    axis = added().axes[0]
    caps = [line for line in axis.get_lines() if line.get_marker() == "s"]
    places = [line.get_xdata() for line in axis.get_lines() if line.get_marker() in "s^Dp"]
    assert len(caps) == 1 and len(np.unique(np.concatenate(places))) == 4 * 3
    arms = [("real", 0, 100, 580), ("controlnet", 830, 100, 580)]
    table = claims.table2_comparison(pd.concat(scores("unet", "steps", arms)))
    axis = evidence.added(table).axes[0]
    mean, low, high = table.loc[1, ["mean", "mean_low", "mean_high"]]
    assert axis.get_lines()[1].get_ydata() == pytest.approx([mean])
    (bar,) = axis.containers[0].lines[2][0].get_segments()
    assert bar[:, 1] == pytest.approx([low, high])
    band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    assert [band.y0, band.y1] == pytest.approx([*table.loc[0, ["mean_low", "mean_high"]]])


def test_a_schedule_that_one_network_lacks_is_no_empty_panel():
    arms = [("real", 0, 100, 580), ("controlnet", 830, 100, 580)]
    trained = [("unet", "epochs"), ("unet", "steps"), ("dcsaunet", "steps")]
    rows = sum((list(scores(*of, arms)) for of in trained), [])
    axes = evidence.added(claims.table2_comparison(pd.concat(rows))).axes
    assert [[text.get_text() for text in axis.texts] for axis in axes] == [
        [],
        [],
        ["not in this run"],
        [],
    ]


def test_a_sample_without_values_keeps_its_row():
    table = pd.DataFrame({"area": noise(9)})
    axis = charts.boxes({"one": table, "none": table[:0], "lacks it": {}}, ["area"]).axes[0]
    assert len(axis.containers) == 1 and len(axis.get_yticklabels()) == 3
