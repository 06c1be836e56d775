"""Figures of notebook 06: validation curves, Table 2, and the worth of synthetic pairs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from lesionlib.evaluation import claims, worth
from lesionlib.evaluation.paper import display_name
from lesionlib.report import style
from lesionlib.segmentation.grid import PLATEAU

ARM = 0.3  # inches: height of an arm's row
DICE = "Dice on S-test\n(mean, 95 % interval)"
BAND = {"color": "0.9", "zorder": 0}  # the interval of a baseline


def curves(table: pd.DataFrame, learnt: pd.DataFrame):
    """Validation Dice against the step, an axis per network: every training, and the plateau's.

    `table`: the curves of `cells.run_cells`; `learnt`: from `cells.learnt`.
    """
    networks = list(dict.fromkeys(table["network"]))
    size = (style.PAGE, 2.8)
    fig, axes = plt.subplots(1, len(networks), figsize=size, squeeze=False)
    finding = {"color": "black", "lw": 1.8, "ls": "-", "label": "training that finds the plateau"}
    others = {"color": "0.6", "lw": 0.5, "ls": "-", "label": "other trainings"}
    start = {"color": "black", "lw": 1, "ls": "--", "label": "start of the plateau"}
    for axis, network in zip(axes[0], networks, strict=True):
        own = table[table["network"] == network]
        for _, rows in own.groupby("cell"):
            line = finding if rows["schedule"].iloc[0] == PLATEAU else others
            axis.plot(rows["step"], rows["val_dice"], **line)
        found = learnt[(learnt["network"] == network) & (learnt["schedule"] == PLATEAU)]
        for begin in found["plateau"].dropna():
            axis.axvline(begin, **start)
        axis.set(title=_headed(network, len(networks)), xlabel="optimiser step")
        axis.locator_params(axis="x", nbins=4)
        axis.xaxis.set_major_formatter("{x:,.0f}")
    axes[0, 0].set_ylabel("Dice on S-val")
    drawn = {line.get_label() for axis in axes[0] for line in axis.lines}
    shown = [line for line in (finding, others, start) if line["label"] in drawn]
    style.legend_below(fig, [Line2D([], [], **line) for line in shown])
    return fig


def _headed(text: str, columns: int) -> str:
    """The display name of a network as the title of one of several axes."""
    return style.wrapped(display_name(text), style.PAGE / columns - 1, plt.rcParams["font.size"])


def added(table: pd.DataFrame):
    """Dice against the number of synthetic pairs added, beside S-train alone.

    An axis per network and schedule. `table`: of `claims.table2_comparison`, whose means and
    intervals are drawn; arms on a share of S-train are left out.
    """
    table = table[table["share"] == 100]
    made = table[(table["amount"] > 0) & (table["method"] != "real_pairs")]
    looks = style.looks(list(dict.fromkeys(made["method"])))
    networks, schedules = (list(dict.fromkeys(made[name])) for name in ("network", "schedule"))
    size = (style.PAGE if len(schedules) > 1 else 5, 2.2 * len(networks) + 0.5)
    fig, axes = plt.subplots(
        len(networks), len(schedules), figsize=size, sharex=True, sharey="row", squeeze=False
    )
    for line, network in zip(axes, networks, strict=True):
        line[0].set_ylabel(DICE)
        for axis, schedule in zip(line, schedules, strict=True):
            own = table[(table["network"] == network) & (table["schedule"] == schedule)]
            _dodged(axis, own, sorted(made["amount"].unique()), looks)
            if own.empty:
                axis.text(0.5, 0.5, "not in this run", ha="center", transform=axis.transAxes)
            title = f"{_headed(network, len(schedules))}\n{claims.SCHEDULES[schedule]}"
            axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("synthetic pairs added")
    marks = [Line2D([], [], **look, label=display_name(name)) for name, look in looks.items()]
    alone = Line2D([], [], color="black", ls="--", label="S-train alone, with its interval")
    style.legend_below(fig, [*marks, alone])
    return fig


def _dodged(axis, arms: pd.DataFrame, amounts: list, looks: dict):
    """The arms of one network and schedule, side by side at each amount, and their baseline."""
    for row in arms[(arms["method"] == "real") & (arms["amount"] == 0)].itertuples():
        axis.axhspan(row.mean_low, row.mean_high, **BAND)
        axis.axhline(row.mean, color="black", ls="--", lw=1)
    for i, (method, look) in enumerate(looks.items()):
        own = arms[(arms["method"] == method) & (arms["amount"] > 0)]
        places = [amounts.index(amount) for amount in own["amount"]]
        offset = 0.6 * ((i + 0.5) / len(looks) - 0.5)
        below, above = own["mean"] - own["mean_low"], own["mean_high"] - own["mean"]
        axis.errorbar(np.add(places, offset), own["mean"], [below, above], ls="", **look)
    axis.set_xticks(range(len(amounts)), [f"{amount:,}" for amount in amounts])
    axis.set_xlim(-0.5, len(amounts) - 0.5)


def worths(images: pd.DataFrame, table: pd.DataFrame, network: str, schedule: str):
    """The Dice of one network against the number of real pairs, and below it the worth of its arms.

    Each arm has a row: its real pairs (tick), and the number of real pairs that would do as well.
    `images` as for `claims.table2_claims`, `table` from `worth.table`. Intervals that have no end
    reach the end of the curve, with an arrowhead.
    """
    own = images[(images["network"] == network) & (images["schedule"] == schedule)]
    arms = table[(table["network"] == network) & (table["schedule"] == schedule)]
    real = [(number, *claims.interval(scores)) for number, scores in worth.knots(own)]
    number, mean, low, high = np.array(real).T
    heights = [2.2, ARM * (len(arms) + 1)]
    fig, (top, below) = plt.subplots(
        2, 1, figsize=(style.PAGE, sum(heights) + 0.6), sharex=True, height_ratios=heights
    )
    look = style.looks(["real"])["real"]
    top.errorbar(number, mean, [mean - low, high - mean], **look)
    top.set(xscale="log", ylabel=DICE, title=display_name(network))
    looks, names = style.looks(list(arms["method"].unique())), []
    for place, row in enumerate(arms.itertuples()):
        bounds = np.array([row.low, row.high])
        ends = np.clip(row.start + bounds, number[0], number[-1])
        line = {"color": looks[row.method]["color"], "ls": "-"}
        below.plot(ends, [place] * 2, **line)
        for end in ends[np.isinf(bounds)]:
            below.plot(end, place, marker="<" if end == number[0] else ">", **line)
        below.plot(row.start + row.worth, place, **looks[row.method])
        below.plot(row.start, place, "|", color="black", markersize=9)
        names.append(f"{row.start:,} real + {row.amount:,} {display_name(row.method)}")
    size = plt.rcParams["ytick.labelsize"]
    below.set_yticks(range(len(arms)), [style.wrapped(name, 2.4, size) for name in names])
    below.set(xlabel="real pairs that do as well, with 95 % interval", ylim=(len(arms) - 0.5, -0.5))
    below.set_xticks(number, _spaced(number))
    below.minorticks_off()
    return fig


def _spaced(numbers) -> list[str]:
    """Labels of ticks on a logarithmic axis; "" where one would touch that before it."""
    labels, last = [], None
    for number in numbers:
        apart = last is None or np.log(number / last) > 0.1 * np.log(numbers[-1] / numbers[0])
        labels.append(f"{number:,.0f}" if apart else "")
        last = number if apart else last
    return labels
