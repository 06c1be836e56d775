"""Sentences that read the tables and figures of notebook 06, made from the numbers of a run."""

import numpy as np
import pandas as pd

from lesionlib.evaluation import claims, paper, worth
from lesionlib.evaluation.paper import display_name
from lesionlib.report import readings, readings_images
from lesionlib.report.findings import span
from lesionlib.report.readings import counted, listed
from lesionlib.segmentation.grid import ALONE
from lesionlib.segmentation.measures import MEASURES
from lesionlib.segmentation.plateau import budget

HALF = 0.5  # of a pair: less is rounding


def plateaus(found: pd.DataFrame, longest: int) -> list[str]:
    """How long each network is trained, and why.

    `found`: the rows of `cells.learnt` that look for the plateau; `longest`: `most_steps`.
    """
    lines = []
    for row in found.itertuples():
        name, has = display_name(row.network), not np.isnan(row.plateau)
        steps = budget(int(row.plateau) if has else None, longest)
        if has:
            text = f"{name}: the plateau begins at S* = {row.plateau:,.0f}, so that"
        else:
            text = (
                f"{name}: no plateau within {row.steps:,} steps, so what follows compares networks "
            )
            text += "that still learn;"
        lines.append(f"{text} a training on S-train alone has {steps:,} steps.")
    return lines or ["No training among these cells looks for a plateau."]


def unfinished(learnt: pd.DataFrame) -> str:
    """How many trainings ended before their plateau, and under which schedule most did."""
    own = learnt[learnt["schedule"] != "plateau"]
    if own.empty:
        return "Only trainings that look for a plateau are among these cells."
    early = own[own["plateau"].isna()]
    text = f"Of {counted(len(own), 'training')}, {len(own) - len(early):,} reached their plateau"
    if early.empty:
        return f"{text}."
    by_schedule = early.groupby("schedule").size().sort_values()
    parts = listed(f"{n:,} under equal {name}" for name, n in by_schedule[::-1].items())
    return f"{text}; {len(early):,} did not ({parts}): these could still have improved."


def table2(table: pd.DataFrame) -> list[str]:
    """Dice on all of S-train alone, and the range with synthetic pairs, for each network.

    `table`: of `cells.table2`. No row is called best: the differences are tested below it.
    """
    lines, whole = [], table[table["share"] == 100]
    for network, rows in whole.groupby("network", sort=False):
        alone, made = rows[rows["method"] == "real"], rows[~rows["method"].isin(ALONE)]
        reached = []
        if len(alone):
            values = dict.fromkeys(f"{dice:.3f}" for dice in alone["dice_mean"])
            reached.append(f"S-train alone reaches Dice {listed(values)}")
        if len(made):
            text = f"with synthetic pairs ({counted(len(made), 'row')}) it reaches "
            text += _range(made["dice_mean"])
            if not np.isnan(sd := made["dice_sd"].max()):
                text += f", with standard deviations over seeds of up to {sd:.3f}"
            reached.append(text)
        if reached:
            lines.append(f"{display_name(network)}: {'; '.join(reached)}.")
    return lines or ["No training on S-train is among these cells."]


def _range(values: pd.Series) -> str:
    """From the smallest to the largest Dice, or the one that there is."""
    return " to ".join(dict.fromkeys(f"{value:.3f}" for value in (values.min(), values.max())))


def measures(table: pd.DataFrame) -> str:
    """Whether the other measures rank the rows as Dice does (Spearman)."""
    ranks = table[["dice_mean", *MEASURES[1:]]].corr("spearman")["dice_mean"].iloc[1:].dropna()
    if len(table) < 3 or ranks.empty:
        return "There are too few different rows to compare the measures."
    parts = [f"`{name}` {value:+.2f}" for name, value in ranks.items()]
    return (
        f"Rank correlation with Dice over these {len(table)} rows: {', '.join(parts)}. "
        f"`{ranks.abs().idxmin()}` orders them least as Dice does."
    )


def differences(compared: pd.DataFrame) -> list[str]:
    """How many arms differ from S-train alone, and which smallest differences could be seen.

    `compared`: of `claims.table2_comparison`, with the column "trained on".
    """
    arms = compared.dropna(subset="difference") if "difference" in compared else compared[:0]
    if arms.empty:
        return ["There is no arm to compare with S-train alone."]
    above, below = (arms["low"] > 0).sum(), (arms["high"] < 0).sum()
    lines = [
        f"Intervals above zero: {above} of {len(arms)}; below it: {below}; containing it: "
        f"{len(arms) - above - below}. The smallest difference that could have been seen is "
        f"{span(arms['detectable'], '.3f')} Dice (before Holm's correction)."
    ]
    sure = arms[arms["p_holm"] < 0.05]
    if sure.empty:
        return [*lines, "After Holm's correction no difference is left with p below 0.05."]
    names = [
        f"{display_name(r['network'])}, {r['trained on']} (equal {r['schedule']}): "
        f"{claims.with_interval(r)}"
        for r in sure.to_dict("records")
    ]
    return [*lines, f"With p below 0.05 after Holm's correction: {'; '.join(names)}."]


def added(compared: pd.DataFrame, methods) -> str:
    """How many points of the figure lie within the interval of S-train alone."""
    whole = compared[compared["share"] == 100]
    alone = whole[whole["method"] == "real"].set_index(["network", "schedule"])
    inside = [
        alone.loc[key, "mean_low"] <= row.mean <= alone.loc[key, "mean_high"]
        for row in whole[whole["method"].isin(methods)].itertuples()
        if (key := (row.network, row.schedule)) in alone.index
    ]
    return (
        f"Within the grey interval of S-train alone: {sum(inside)} of {len(inside)} means with "
        f"synthetic pairs; the paired differences of the table above tell more."
    )


def headroom(room: pd.DataFrame) -> list[str]:
    """What each arm with real pairs adds, and what that means for the claims."""
    if room.empty:
        return ["Headroom was not measured: no claim on synthetic pairs can be judged."]
    enough = int(room["enough"].sum())
    if enough == len(room):
        last = "Headroom is shown everywhere: claims are judged by their own numbers."
    elif enough:
        last = f"Headroom is shown in {enough} of {len(room)} cases; in the others, no claim on "
        last += "what synthetic pairs add can be judged."
    else:
        last = "Headroom is shown nowhere: no claim on what synthetic pairs add can be judged."
    return [*room["sentence"], last]


def harder(room: pd.DataFrame) -> list[str]:
    """The same on the harder half of the images."""
    if room.empty:
        return [
            "No harder half is compared here: it needs real pairs on a larger share of S-train."
        ]
    return list(room["sentence"])


def worths(table: pd.DataFrame) -> str:
    """How many arms are surely worth real pairs, surely cost some, or are undecided."""
    if table.empty:
        return "The worth is not measured here: it needs two numbers of real pairs."
    gain, loss = (table["low"] > HALF).sum(), (table["high"] < -HALF).sum()
    without_end = np.isinf(table[["low", "high"]]).any(axis=1).sum()
    return (
        f"Intervals above zero (worth real pairs): {gain} of {len(table)}; below it (costing "
        f"some): {loss}; undecided: {len(table) - gain - loss}. Without an end on this curve, "
        f"which is too flat or too uncertain there: {without_end}."
    )


def curve(images: pd.DataFrame, network: str, schedule: str) -> str:
    """How Dice rises with the number of real pairs; `images`: rows per image of all networks."""
    own = images[(images["network"] == network) & (images["schedule"] == schedule)]
    real = worth.knots(own)
    means = [claims.interval(scores)[0] for _, scores in real]
    rising = "rising" if np.all(np.diff(means) >= 0) else "not rising"
    return (
        f"{display_name(network)}: from {real[0][0]:,} to {real[-1][0]:,} real pairs the mean Dice "
        f"goes from {means[0]:.3f} to {means[-1]:.3f}, {rising} at every step."
    )


def controls(table: pd.DataFrame) -> list[str]:
    """The verdicts on the controls, and whether wrong masks were seen to harm."""
    lines = readings.verdicts({"controls": table})
    if "against" not in table:
        return lines
    for row in table[table["against"].str.contains("_shuffled")].to_dict("records"):
        seen = "lies above zero" if row["low"] > 0 else "does not lie above zero"
        text = f"{row['claim']}: {row['verdict']}, difference {claims.with_interval(row)}"
        lines.append(f"{text}, whose interval {seen}.")
    return lines


def subgroups(table: pd.DataFrame) -> str:
    """How many subgroups differ, and how many would by chance."""
    if table.empty:
        return "There are no subgroups to compare."
    apart = ((table["low"] > 0) | (table["high"] < 0)).sum()
    tested, smallest = table["low"].notna().sum(), counted(table["n"].min(), "image")
    return (
        f"Intervals that exclude zero: {apart} of {tested}, where chance alone would give about "
        f"{0.05 * tested:.1f}; the smallest group has {smallest}. "
        f"No group is singled out: nothing was planned or corrected for."
    )


def external(table: pd.DataFrame) -> str:
    """Dice on further test sets beside nothing else: ranges by test set."""
    if table.empty:
        return "No further test set was named."
    parts = [
        f"{name}: Dice {_range(rows['dice_mean'])}"
        for name, rows in table.groupby("test", sort=False)
    ]
    return f"Over all networks and arms, {'; '.join(parts)}."


def verdicts(table: pd.DataFrame) -> list[str]:
    """The verdicts on `claims.table2_claims`."""
    return readings.verdicts({"claims": table})


def survival(lines: list[str]) -> list[str]:
    """The lines of `claims.survival`, joined where they conclude the same.

    Comparisons are named unless nothing was shown.
    """
    grouped = {}
    for line in lines:
        name, _, conclusion = line.partition(": ")
        grouped.setdefault(conclusion.rstrip("."), []).append(name)
    found = []
    for conclusion, names in grouped.items():
        which = "" if conclusion == claims.SURVIVAL[False, False] else f" ({'; '.join(names)})"
        number = f"{len(names)} of {len(lines)} comparisons under both schedules"
        found.append(f"{number}: {conclusion}{which}.")
    return found or ["No claim was tested under both schedules."]


def seeds(images: pd.DataFrame) -> str:
    """How many seeds each arm has, as "5" or "2 to 5"; `images`: the rows per image."""
    return span(images.groupby(["network", "method", "amount", "share"])["seed"].nunique())


def answer(table: pd.DataFrame, room: pd.DataFrame, images: pd.DataFrame, lines: list) -> str:
    """The answer to notebook 06's question in at most four sentences.

    `table`: of `claims.table2_claims`; `room`: of `claims.headroom`; `images`: the rows per image;
    `lines`: of `claims.survival`.
    """
    number = counted(images["id"].nunique(), "image")
    said = [
        f"Table 2 was tested on {number} (seeds of each arm: {seeds(images)}).",
        readings.outcome({"claims": table}),
    ]
    if len(room):
        enough = int(room["enough"].sum())
        text = (
            f"All real pairs of G in place of synthetic ones add {_extent(room['difference'])} Dice"
        )
        text += f", shown to be more than half a point in {enough} of {counted(len(room), 'case')}"
        said.append(text + (": elsewhere no gain could be judged." if enough < len(room) else "."))
    said.append("; ".join(line.rstrip(".") for line in survival(lines)) + ".")
    return " ".join(said)


def beside_paper(table1, table: pd.DataFrame, of_table2, of_table1) -> str:
    """The answer to notebook 07's question in four sentences.

    `table1` and `table`: Tables 1 and 2 of the run; then the claims on Table 2 and on Table 1.
    """
    known = paper.TABLE2[paper.TABLE2["method"] == "real"].set_index("network")["paper dice"]
    whole = table[table["share"] == 100]
    alone = whole[whole["method"] == "real"].groupby("network", sort=False)["dice_mean"].first()
    parts = [
        f"{display_name(name)} {dice:.3f}"
        + (f" (paper: {known[name]:.3f})" if name in known else "")
        for name, dice in alone.items()
    ]
    made = whole.loc[~whole["method"].isin(ALONE), "dice_mean"]
    return (
        f"{readings_images.ssim(table1)} On S-train alone, Dice is {listed(parts)}. With synthetic "
        f"pairs added it is {_range(made)}; whether that is a gain, only the "
        f"claims tell. {readings.outcome({'claims': of_table2, 'image_claims': of_table1})}"
    )


def _extent(values: pd.Series) -> str:
    """From the smallest to the largest difference, or the one that there is."""
    return " to ".join(dict.fromkeys(f"{value:+.3f}" for value in (values.min(), values.max())))
