"""Figures of notebook 06: validation curves, and the worth of synthetic pairs in real ones."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lesionlib.evaluation import claims, worth
from lesionlib.evaluation.paper import display_name
from lesionlib.segmentation.grid import PLATEAU


def curves(table: pd.DataFrame, learnt: pd.DataFrame):
    """Validation Dice against the step, an axis per network: every training, and the plateau's.

    `table`: the curves of `cells.run_cells`; `learnt`: from `cells.learnt`.
    """
    networks = list(dict.fromkeys(table["network"]))
    size = (5 * len(networks), 3)
    fig, axes = plt.subplots(1, len(networks), figsize=size, squeeze=False, layout="constrained")
    for axis, network in zip(axes[0], networks, strict=True):
        own = table[table["network"] == network]
        for _, rows in own.groupby("cell"):
            thick = rows["schedule"].iloc[0] == PLATEAU
            style = {"color": "black", "lw": 1.8} if thick else {"color": "0.6", "lw": 0.5}
            axis.plot(rows["step"], rows["val_dice"], **style)
        found = learnt[(learnt["network"] == network) & (learnt["schedule"] == PLATEAU)]
        for begin in found["plateau"].dropna():
            axis.axvline(begin, color=claims.VERDICTS["supported"], ls="--")
        axis.set(title=display_name(network), xlabel="optimiser step", ylabel="Dice on S-val")
    return fig


def worths(images: pd.DataFrame, table: pd.DataFrame, network: str, schedule: str):
    """The Dice of one network against the number of real pairs, and its synthetic arms on it.

    `images` as for `claims.table2_claims`, `table` from `worth.table`. Intervals that have no end
    reach the border of the figure.
    """
    own = images[(images["network"] == network) & (images["schedule"] == schedule)]
    arms = table[(table["network"] == network) & (table["schedule"] == schedule)]
    real = [(number, *claims.interval(scores)) for number, scores in worth.knots(own)]
    number, mean, low, high = np.array(real).T
    fig, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    axis.errorbar(number, mean, [mean - low, high - mean], color="black", marker="o", capsize=3,
                  label="real pairs only")  # fmt: skip
    for i, row in enumerate(arms.itertuples()):
        ends = np.clip([row.start + row.low, row.start + row.high], number[0], number[-1])
        name = f"{row.start:,} real + {row.amount:,} {display_name(row.method)}"
        line = axis.plot(ends, [row.dice] * 2, lw=2, color=f"C{i}", alpha=0.6)
        place = row.start + row.worth
        axis.plot(place, row.dice, "D", color=line[0].get_color(), label=name)
    axis.set(
        xscale="log", xlabel="real pairs", ylabel="Dice on S-test", title=display_name(network)
    )
    axis.set_xticks(number, [f"{n:,.0f}" for n in number], rotation=30)
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig
