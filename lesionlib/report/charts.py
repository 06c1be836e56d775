"""Charts of what is measured on each image or mask: shares of attributes, and distributions."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesionlib.data.prompts import WORDS
from lesionlib.evaluation import statistics
from lesionlib.evaluation.fidelity import KINDS
from lesionlib.evaluation.paper import display_name
from lesionlib.report import style
from lesionlib.segmentation.grid import of_generator

LABEL = 1.5  # inches: the widest label of a row
MEAN = "mean with 95 % interval"
BOX = "quartiles, and the 5th to 95th percentile"


def attributes(table: pd.DataFrame):
    """The share of images that show each attribute, in percent, a row per diagnosis.

    `table` has a row per image: `diagnosis` and, as 0 or 1, the attributes of `data.prompts`.
    """
    groups = table.assign(diagnosis=table["diagnosis"].replace("", "unknown")).groupby("diagnosis")
    shares = groups[list(WORDS)].mean()
    names = [f"{name} (n = {n})" for name, n in groups.size().items()]
    fig, axis = plt.subplots(figsize=(style.PAGE, 0.35 * len(shares) + 0.8))
    words = [style.wrapped(word, 0.9, plt.rcParams["font.size"]) for word in WORDS.values()]
    options = dict(
        vmin=0, vmax=100, cmap="Blues", annot=True, fmt=".0f", cbar=False, linewidths=0.5
    )
    sns.heatmap(100 * shares, ax=axis, xticklabels=words, yticklabels=names, **options)
    for text in axis.texts:
        text.set_text(f"{text.get_text()} %")
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0, rotation=0)
    return fig


def _row(axis, values, place: int, look: dict, interval):
    """A box of the values with their mean and its interval, at a height of the axis."""
    lines = {"color": "0.6", "lw": 0.8}
    axis.boxplot(
        values,
        positions=[place],
        orientation="horizontal",
        widths=0.6,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "0.93", "edgecolor": "0.6", "lw": 0.8},
        medianprops=lines,
        whiskerprops=lines,
        capprops=lines,
    )
    mean, low, high = interval or statistics.interval(np.asarray(values, float))
    axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], zorder=3, **look)


def boxes(samples: dict, columns, names=None, looks=None, intervals=None):
    """Distributions of up to four quantities, an axis for each, with a row for each sample.

    `samples` {name: table with `columns`}, without missing values; rows are labelled by `names`
    {name: label}. Where a sample has no values of a column, the row stays empty. `looks` as from
    `style.looks`; without, all rows look the same. `intervals` {(name, column): (mean, low, high)};
    without, `statistics.interval` over the rows of the table.
    """
    across = 2 if len(columns) == 4 else len(columns)
    down = len(columns) // across
    height = down * (0.3 * len(samples) + 0.6) + 0.35
    fig, axes = plt.subplots(down, across, figsize=(style.PAGE, height), sharey=True, squeeze=False)
    shown = [(names or {}).get(name, name) for name in samples]
    labels = [style.wrapped(name, LABEL, plt.rcParams["ytick.labelsize"]) for name in shown]
    for axis, column in zip(axes.flat, columns, strict=True):
        for place, (name, sample) in enumerate(samples.items()):
            look = (looks or {}).get(name, style.NEUTRAL)
            if len(sample.get(column, ())):
                _row(axis, sample[column], place, look, (intervals or {}).get((name, column)))
        axis.set_xlabel(style.label(column))
        axis.locator_params(axis="x", nbins=5)
        axis.set_yticks(range(len(samples)), labels)
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_ylim(len(samples) - 0.5, -0.5)
    mark = Line2D([], [], **style.NEUTRAL, label=MEAN)
    style.legend_below(fig, [mark, Patch(facecolor="0.93", edgecolor="0.6", label=BOX)])
    return fig


def image_quality(rows: pd.DataFrame, compared: pd.DataFrame):
    """The measures of Table 1 over the images, a row per method.

    `rows` has a row per image, `method` and generator seed; `compared` is of `compare_generators`
    for each measure, and has the means and intervals.
    """
    bounds = ["mean", "mean_low", "mean_high"]
    found = compared.set_index(["arm", "measure"])[bounds]
    intervals = dict(zip(found.index, found.itertuples(index=False, name=None), strict=True))
    samples = dict(list(rows.groupby("method", sort=False)))
    names = {method: display_name(method) for method in samples}
    measures = ["mse", "psnr_1", "ssim", "lpips"]
    return boxes(samples, measures, names, style.looks(samples), intervals)


def mask_fidelity(rows: pd.DataFrame, generators):
    """Fidelity of each training of `generators` and of the base, beside real images and chance, by
    kind of masks.

    `rows` as for `evaluation.fidelity.table`. Chance: the mean over images of other masks, for each
    image of a generator.
    """
    sets = rows["images"].unique()
    trainings = [name for one in generators for name in sets if of_generator(name)[0] == one]
    made = rows[rows["images"].isin(trainings)]
    parts = {"real": rows[rows["images"] == "real"]}
    parts |= {name: rows[rows["images"] == name] for name in [*trainings, "base"]}
    parts["chance"] = made.assign(dice=made["chance"])
    samples = {
        name: {kind: own["dice"].to_numpy() for kind, own in part.groupby("masks")}
        for name, part in parts.items()
    }
    names = {name: display_name(name) for name in [*trainings, "base"]} | {"real": "real images"}
    names["chance"] = "masks of other images (chance)"
    fig = boxes(samples, KINDS, names, style.looks(samples))
    for axis, kind in zip(fig.axes, KINDS, strict=True):
        axis.set(xlim=(0, 1), xlabel="Dice with the conditioning mask", title=f"masks of {kind}")
    return fig
