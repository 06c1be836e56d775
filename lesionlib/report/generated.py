"""Figures and tables of notebooks 03 and 04: training, images, and variants of a generator."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lesionlib.data import augmentation
from lesionlib.engine.files import ROOT, Log
from lesionlib.report import plots


def losses(folders: dict[str, Path], columns):
    """Plot columns of the log.csv in each folder against the step, one axis per label."""
    size = (6 * len(folders), 2.6)
    fig, axes = plt.subplots(1, len(folders), figsize=size, squeeze=False, layout="constrained")
    for axis, (label, folder) in zip(axes[0], folders.items(), strict=True):
        plots.curve(Log.read(folder / "log.csv"), columns, label, axis)
    return fig


def controlnet_training(folder):
    """Training loss, held-out losses and mask fidelity of a ControlNet against the step."""
    log, validations = (Log.read(folder / name) for name in ("log.csv", "validations.csv"))
    fig, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
    plots.curve(log, ["loss"], "training loss", axes[0])
    plots.curve(validations, ["held_out_loss", "wrong_mask_loss"], "loss on S-val", axes[1])
    plots.curve(validations, ["mask_fidelity"], "mask fidelity (Dice)", axes[2])
    axes[2].set_ylim(0, 1)
    return fig


def s_test(test, generated: dict):
    """The first 8 images and masks of S-test, and the images generated for them, by label."""
    masks = test.masks[:8]
    rows = {"original": test.images[:8], "mask": masks}
    rows |= {label: plots.all_outlined(x[:8], masks) for label, x in generated.items()}
    return plots.sheet(rows, made=tuple(generated), masks={"original": masks})


def warped_copies(part, settings, training: str, shown: int = 4):
    """The first 8 images of a `dataset.Study`, and `shown` copies of each that a training sees.

    Returns the sheet, and the masks (8 shown, S, S) of the copies.
    """
    images, masks = part.images[:8], part.masks[:8]
    matrices = augmentation.variants(part.images, part.masks, settings, training)[:shown, :8]
    pairs = {"in place": (images, masks)} | {
        f"copy {i + 1}": (
            augmentation.warp_images(images, masks, copies),
            augmentation.warp_masks(masks, copies),
        )
        for i, copies in enumerate(matrices)
    }
    rows = {label: plots.all_outlined(*pair) for label, pair in pairs.items()}
    lesions = {label: lesions for label, (_, lesions) in pairs.items()}
    return plots.sheet(rows, masks=lesions), np.concatenate([*lesions.values()][1:])


def variants(generator: str, plan: str = "isic") -> pd.DataFrame:
    """The ablation `plan` of a generator (`benchmarks.ablation`), real images in the first row."""
    table = pd.read_csv(ROOT / "config" / "ablation" / f"{plan}.csv", keep_default_na=False)
    chosen = table[table["generator"].isin(["real", generator])]
    return chosen.drop(columns=["generator", "version"])
