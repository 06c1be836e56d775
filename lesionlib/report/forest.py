"""The forest plot of a run: every claim and control with its interval, coloured by verdict."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesionlib.engine.files import atomic_write
from lesionlib.evaluation import statistics
from lesionlib.evaluation.claims import SCHEDULES, VERDICTS

WIDTH, LINE = 5.2, 0.205  # inches: the figure, and each line of text or interval
WRAP = 66  # characters of a claim in a line
MARKERS = {"steps": "o", "epochs": "s", "": "D"}  # by schedule
LARGEST = 0.3  # Dice; intervals that reach farther, and than all differences, end in an arrow
WHITE = dict(facecolor="white", edgecolor="none", pad=0.5)  # behind text
CAPTION = (
    "All claims and controls: the difference in favour of the claim as it is worded, with its 95 % "
    "interval. Grey band: less than half a Dice point either way. Arrows: the interval goes on."
)


def alternative_text(rows: pd.DataFrame) -> str:
    """The plot in words: how many claims have which verdict."""
    counts = rows["verdict"].value_counts()
    said = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if name in counts)
    return f"Forest plot, claims and controls: {said}."


def _blocks(rows: pd.DataFrame) -> list[tuple[list[str], list[dict]]]:
    """Rows that differ in their schedule only, below the lines of their common text."""
    texts = rows["claim"].str.replace(r" \((equal [^)]*)\)$", "", regex=True)
    share = rows["share"].map(lambda x: "" if x == 100 else f", {x:.0f} % of S-train")
    kind = rows["kind"].map(lambda x: "Control: " if x == "controls" else "")
    grouped = rows.groupby(kind + texts + share, sort=False)
    return [(textwrap.wrap(text, WRAP), part.to_dict("records")) for text, part in grouped]


def _interval(axis, y: float, row: dict, limit: float):
    """An interval, its difference and its verdict at height y; arrows where it leaves the axis."""
    colour, marker = VERDICTS[row["verdict"]], MARKERS[row["schedule"]]
    ends = [max(row["low"], -limit), min(row["high"], limit)]
    axis.plot(ends, [y, y], color=colour, linewidth=1.6)
    for end, arrow, leaves in (
        (-limit, "<", row["low"] < -limit),
        (limit, ">", row["high"] > limit),
    ):
        if leaves:
            axis.plot(end, y, arrow, color=colour, markersize=5, clip_on=False)
    axis.plot(row["difference"], y, marker, color=colour, markersize=5)
    place = axis.get_yaxis_transform()
    axis.text(1.02, y, row["verdict"], transform=place, color=colour, va="center", fontsize=8)


def _panel(axis, unit: str, blocks: list, reach: float):
    """The blocks of one unit, from top to bottom, each line one unit high."""
    far = max(abs(row["difference"]) for _, rows in blocks for row in rows)
    limit = min(reach, max(LARGEST, 1.1 * far)) if unit == "Dice" else reach
    place, y = axis.get_yaxis_transform(), 0
    for texts, rows in blocks:
        for text in texts:
            axis.text(0, y, text, transform=place, va="center", fontsize=9, bbox=WHITE)
            y += 1
        for row in rows:
            _interval(axis, y, row, limit)
            y += 1
    axis.axvline(0, color="#555555", linewidth=0.8, zorder=0)
    if unit == "Dice":
        axis.axvspan(-statistics.MARGIN, statistics.MARGIN, color="#d8dde3", zorder=-1)
    axis.set(xlim=(-1.05 * limit, 1.05 * limit), ylim=(y - 0.4, -0.6), yticks=[])
    axis.set_xlabel(f"difference of {unit} in favour of the claim", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["left", "right", "top"]].set_visible(False)


def _legend(fig, rows: pd.DataFrame):
    shown = [name for name in VERDICTS if name in set(rows["verdict"])]
    handles = [Patch(color=VERDICTS[name], label=name) for name in shown]
    for schedule, words in SCHEDULES.items():
        if schedule in set(rows["schedule"]):
            style = dict(color="#333333", marker=MARKERS[schedule], linestyle="")
            handles.append(Line2D([], [], label=words, **style))
    fig.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=8)


def draw(rows: pd.DataFrame):
    """The figure of the rows of `findings.tested`, a panel for each unit of the differences."""
    parts = {unit: part for unit, part in rows.groupby("unit", sort=False)}
    blocks = {unit: _blocks(part) for unit, part in parts.items()}
    heights = [sum(len(a) + len(b) for a, b in found) for found in blocks.values()]
    size = (WIDTH, LINE * (sum(heights) + 2.8 * len(parts) + 3))
    grid = {"height_ratios": heights}
    fig, axes = plt.subplots(
        len(parts), squeeze=False, figsize=size, layout="constrained", gridspec_kw=grid
    )
    for axis, (unit, part) in zip(axes[:, 0], parts.items(), strict=True):
        _panel(axis, unit, blocks[unit], part[["difference", "low", "high"]].abs().max().max())
    _legend(fig, rows)
    return fig


def write(rows: pd.DataFrame, path):
    """Write the plot of the rows of `findings.tested` as SVG."""
    fig = draw(rows)
    with plt.rc_context({"svg.hashsalt": "forest"}), atomic_write(path) as temporary:
        fig.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(fig)
