"""Sentences that read the tables and figures of notebook 05, made from the numbers of a run."""

import numpy as np
import pandas as pd

from lesionlib.evaluation import paper, statistics
from lesionlib.evaluation.fidelity import KINDS
from lesionlib.evaluation.paper import display_name
from lesionlib.report import findings, readings
from lesionlib.report.readings import counted, listed, upper

BETTER = {"mse": -1, "psnr_1": 1, "ssim": 1, "lpips": -1}  # measure: sign of an improvement
WORDS = {"mse": "MSE", "psnr_1": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
REAL = "real"  # the row of real images in tables of sets


def _names(methods) -> str:
    return listed(display_name(name) for name in methods)


def table1(table: pd.DataFrame) -> str:
    """Whether the two generators of the paper are in its order; else the range of SSIM."""
    means = table.set_index("method")
    if not {"controlnet", "pix2pixhd"} <= set(means.index):
        return f"Mean SSIM: {findings.span(means['ssim'], '.3f')}."
    ours, theirs = means.loc["controlnet"], means.loc["pix2pixhd"]
    ahead = [
        WORDS[name]
        for name in ("mse", "psnr_1", "ssim")
        if BETTER[name] * (ours[name] - theirs[name]) > 0
    ]
    where = f"in {listed(ahead)}" if ahead else "in none of the paper's measures"
    return (
        f"The mean of ControlNet is better than that of Pix2PixHD {where}; in the paper it is in "
        f"MSE, PSNR and SSIM. Resolution and training are not the paper's: compare the order, not "
        f"the values."
    )


def comparison(compared: pd.DataFrame) -> list[str]:
    """In which measures each generator differs from the one that it is compared with."""
    if "difference" not in compared:
        return ["There is no second generator to compare with."]
    arms = compared[compared["measure"].isin(BETTER)]
    against = arms.loc[arms["difference"].isna(), "arm"].iloc[0]
    lines = []
    for arm, rows in arms.dropna(subset="difference").groupby("arm", sort=False):
        signs = rows["measure"].map(BETTER)
        low, high = signs * rows["low"], signs * rows["high"]
        groups = {"better in": (low > 0) & (high > 0), "worse in": (low < 0) & (high < 0)}
        groups["not told apart in"] = ~(groups["better in"] | groups["worse in"])
        parts = [
            f"{k} {listed(rows['measure'][m].map(WORDS))}" for k, m in groups.items() if m.any()
        ]
        lines.append(f"{display_name(arm)} against {display_name(against)}: {', '.join(parts)}.")
    if lines and (arms["seeds"].dropna() == 1).all():
        lines.append(
            "These intervals are over images: with one training of each generator they speak of "
            "these trainings, not of the methods."
        )
    return lines


def spread(quality: pd.DataFrame) -> str:
    """The spread of SSIM over images beside the differences between generators."""
    groups = quality.groupby("method", sort=False)["ssim"]
    deviation, means = groups.std().mean(), groups.mean()
    text = (
        f"Within a generator, the SSIM of single images has a standard deviation of {deviation:.3f}"
    )
    if len(means) < 2:
        return f"{text}."
    gap = means.max() - means.min()
    relation = "more" if deviation > gap else "less"
    return (
        f"{text}, {relation} than the {gap:.3f} between the highest and the lowest mean: hence "
        f"generators are compared image by image."
    )


def above_chance(rows: pd.DataFrame) -> list[str]:
    """By how much fidelity exceeds chance, with its interval over images; the base among them.

    `rows` as for `evaluation.fidelity.table`.
    """
    lines = []
    for (images, masks), own in rows[rows["images"] != REAL].groupby(
        ["images", "masks"], sort=False
    ):
        differences = (own["dice"] - own["chance"]).dropna().to_numpy()
        if not len(differences):
            continue
        mean, low, high = statistics.interval(differences)
        kind = f"{'' if masks == KINDS[0] else 'the '}{masks}"
        said = "above chance" if low > 0 else "below chance" if high < 0 else "not told from chance"
        lines.append(
            f"{upper(display_name(images))}, masks of {kind}: {said}, by {mean:+.3f} "
            f"({low:+.3f} to {high:+.3f})."
        )
    return lines


def sets(table: pd.DataFrame) -> list[str]:
    """KID of each set beside the floor of real images, with each kind of features.

    `table`: of `distribution.compare_all` with the name of the `features`, the row REAL among them.
    """
    lines = []
    for features, rows in table.groupby("features", sort=False):
        own = rows.set_index("images")
        floor, made = own.loc[REAL], own.drop(index=REAL)
        excess, noise = made["kid"] - floor["kid"], 2 * np.maximum(made["kid_sd"], floor["kid_sd"])
        near, far = made.index[excess <= noise], made.index[excess > noise]
        parts = [f"beyond them: {_names(far)}"] if len(far) else []
        parts = (
            [f"within two such deviations of it: {_names(near)}", *parts] if len(near) else parts
        )
        least = made["recall"].idxmin()
        recall, remark = f"recall of {display_name(least)}", ""
        if len(made) > 1:
            recall = f"recall is lowest for {display_name(least)}"
            remark = ": it covers the least of what real images show"
        lines.append(
            f"With features of {features}, the floor is KID {floor['kid']:.3f} (standard deviation "
            f"over subsets {floor['kid_sd']:.3f}); {', '.join(parts)}. {upper(recall)} "
            f"({made['recall'][least]:.2f}; real images {floor['recall']:.2f}){remark}."
        )
    return lines


def copies(table: pd.DataFrame) -> str:
    """Whether generated images are copies, or nearer to G than real images are.

    `table`: of `distribution.memorisation`, whose first row is of real images.
    """
    made = table.iloc[1:]
    found = made[made["near-copies"] > 0]
    text = f"None of the {counted(made['n'].sum(), 'generated image')} is a near-copy of one of G"
    if len(found):
        names = [f"{r['near-copies']} of {r['n']} of {display_name(r['images'])}"
                 for _, r in found.iterrows()]  # fmt: skip
        text = f"Near-copies of images of G: {listed(names)}"
    nearer = made[(made[["features: of real", "pixels: of real"]] < 1).all(axis=1)]
    if nearer.empty:
        return (
            f"{text}. No set is nearer to G, both in features and in pixels, than real images are."
        )
    return (
        f"{text}. Nearer to G than real S-test images are, both in features and in pixels: "
        f"{_names(nearer['images'])}."
    )


def nearest(closest: dict, methods) -> str:
    """How near the nearest generated image comes to G, beside the nearest real one.

    `closest` {name: (distances, indices)}: of `distribution.memorisation`.
    """
    middle = np.median(closest[REAL][0])
    parts = [f"{display_name(name)} {closest[name][0].min() / middle:.0%}" for name in methods]
    return (
        f"The smallest distance to an image of G, as a share of the median of real S-test images: "
        f"{listed(parts)}; real S-test images {closest[REAL][0].min() / middle:.0%}."
    )


def diversity(table: pd.DataFrame) -> str:
    """How different the images of one mask are, beside two real images."""
    real, made = table.iloc[0], table.iloc[1]
    shares = [f"{made[name] / real[name]:.0%} {name}" for name in ("in features", "in pixels")]
    return (
        f"Two images of one mask differ by {listed(shares)} of what two real images do, which also "
        f"differ in their lesions: the noise alone varies this much."
    )


def noises(parts: np.ndarray) -> str:
    """For which mask the images differ most; `parts` (masks, samples, S, S, 3) uint8."""
    spread = np.std(parts / 255, axis=1).mean(axis=(1, 2, 3))
    most, least = spread.argmax(), spread.argmin()
    return (
        f"The images of mask {most + 1} differ most (standard deviation over noises, mean of all "
        f"pixels: {spread[most]:.3f} of the range), those of mask {least + 1} least "
        f"({spread[least]:.3f})."
    )


def verdicts(claims: pd.DataFrame) -> list[str]:
    """The verdicts on `claims.table1_claims`."""
    return readings.verdicts({"image_claims": claims})


def answer(table: pd.DataFrame, summary: pd.DataFrame, as_sets, memorised, claims) -> str:
    """The answer to notebook 05's question in four sentences.

    `table`: Table 1; `summary`: of `fidelity.table`; `as_sets`: of `compare_all`; `memorised`: of
    `memorisation`; `claims`: of `claims.table1_claims`.
    """
    fitting = summary.pivot(index="images", columns="masks", values="mean")
    kid = as_sets.set_index("images")["kid"]
    methods, place = list(table["method"]), fitting[KINDS[0]]
    moved = [
        f"{place[m]:.3f} ({fitting[KINDS[1]][m]:.3f} in its training pairs) for {display_name(m)}"
        for m in methods
    ]
    sets_of = [f"{display_name(m)} {kid[m]:.3f}" for m in methods]
    copied = int(memorised["near-copies"].iloc[1:].sum())
    near = f"{counted(copied, 'near-copy', 'near-copies')} of images of G"
    return (
        f"{ssim(table)} The lesion is in its mask with Dice {listed(moved)}, beside "
        f"{place[REAL]:.3f} for real images and {place['base']:.3f} without control. As a set, KID "
        f"is {listed(sets_of)} beside {kid[REAL]:.3f} for real images, and {near} "
        f"{'is' if copied < 2 else 'are'} found. {readings.outcome({'image_claims': claims})}"
    )


def ssim(table: pd.DataFrame) -> str:
    """The SSIM of Table 1 beside the paper's, one sentence."""
    own = [f"{display_name(row.method)} {row.ssim:.3f}" for row in table.itertuples()]
    reported = paper.TABLE1[["method", "paper ssim"]].itertuples(index=False, name=None)
    theirs = [f"{display_name(name)} {value:.2f}" for name, value in reported]
    return (
        f"On the {table['n'].iloc[0]:,} masks of S-test, SSIM with the originals is {listed(own)} "
        f"(paper: {listed(theirs)})."
    )
