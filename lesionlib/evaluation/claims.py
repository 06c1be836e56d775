"""The paper's claims tested on a run: supported, ruled out, or inconclusive.

A design that could not have shown a gain must not judge one. Its controls say what it could have
shown: real pairs of G in place of synthetic ones (`headroom`), and pairs with masks of other pairs,
which must harm (`sensitivity`). Where they fail, a claim is inconclusive, whatever its numbers.
"""

import numpy as np
import pandas as pd

from lesionlib.data import dataset, prompts
from lesionlib.evaluation import statistics
from lesionlib.evaluation.paper import display_name
from lesionlib.segmentation.grid import ALONE, TREATMENTS

VERDICTS = {  # verdict: its colour, in notebooks and in the report
    "supported": "#1b7837",
    "ruled out": "#b2182b",
    "inconclusive": "#666666",
    "not tested": "#4a6fa5",
}
# Below, a claim with its arm and the arm that it must exceed: a positive difference favours the
# claim. {a} is the smallest amount, {z} the largest, {at} the share of S-train, {m} each generator.
CLAIMS = {
    "{a} ControlNet pairs improve the {network}": ("controlnet {a}{at}", "real 0{at}"),
    "{z} ControlNet pairs improve the {network}": ("controlnet {z}{at}", "real 0{at}"),
    "{z} ControlNet pairs help the {network} more than {a}": (
        "controlnet {z}{at}",
        "controlnet {a}{at}",
    ),
    "{a} ControlNet pairs help the {network} more than {a} of Pix2PixHD": (
        "controlnet {a}{at}",
        "pix2pixhd {a}{at}",
    ),
    "{z} ControlNet pairs help the {network} more than {z} of Pix2PixHD": (
        "controlnet {z}{at}",
        "pix2pixhd {z}{at}",
    ),
}
HARM = {  # the negative control
    "{m} pairs with masks of other pairs harm the {network}": ("real 0{at}", "{m}_shuffled {a}{at}")
}
CONTROLS = {  # what the paper does not report
    **HARM,
    "classical augmentation improves the {network}": ("classical 0", "real 0"),
    "{a} {m} pairs help the {network} more than classical augmentation": ("{m} {a}", "classical 0"),
    "{z} {m} pairs alone train the {network} better than S-train": ("{m} {z} share0", "real 0"),
    "real masks help the {network} more than the main ones": (
        "controlnet_real {a}{at}",
        "controlnet {a}{at}",
    ),
    "fitted masks help the {network} more than the main ones": (
        "controlnet_fitted {a}{at}",
        "controlnet {a}{at}",
    ),
    "automatic masks help the {network} more than the main ones": (
        "controlnet_paper {a}{at}",
        "controlnet {a}{at}",
    ),
    "prompts help the {network} more than empty ones": (
        "controlnet {a}{at}",
        "controlnet_empty {a}{at}",
    ),
    "uniform prompts help the {network} more than the main ones": (
        "controlnet_uniform {a}{at}",
        "controlnet {a}{at}",
    ),
    "{m} pairs of high mask fidelity help the {network} more than all": (
        "{m}_best {a}{at}",
        "{m} {a}{at}",
    ),
    "{m} pairs first, then real ones, help the {network} more than all at once": (
        "{m}_first {a}{at}",
        "{m} {a}{at}",
    ),
    "{m} pairs as half of each batch help the {network} more than as their share": (
        "{m}_mixed {a}{at}",
        "{m} {a}{at}",
    ),
    "ControlNet pairs help the {network} more than the base's without control": (
        "controlnet {a}{at}",
        "base {a}{at}",
    ),
}
SCHEDULES = {"epochs": "equal epochs", "steps": "equal optimiser steps"}
TONES = {"light": (41, 90), "intermediate": (28, 41), "tan or darker": (-90, 28)}  # ITA, degrees

IMAGE_CLAIMS = {  # measure: claim, sign of an improvement
    "mse": ("a lower MSE", -1),
    "psnr_255": ("a higher PSNR", 1),
    "ssim": ("a higher SSIM", 1),
}
SURVIVAL = {  # supported with equal epochs, with equal steps: conclusion
    (True, True): "better, also with equal optimiser steps",
    (True, False): "better with equal epochs, not shown with equal optimiser steps",
    (False, True): "better with equal optimiser steps, not shown with equal epochs",
    (False, False): "not shown to be better under either schedule",
}
LONGER = (  # supported with equal epochs, ruled out with equal steps
    "better only when it is trained for more steps: the gain does not survive equal training"
)


def _real(arm: str) -> bool:
    """Whether an arm, named as in `arms`, has no synthetic pairs."""
    return arm.split()[0] in ALONE


def _at(share: int) -> str:
    """The ending of an arm's name at a share of S-train."""
    return "" if share == 100 else f" share{share}"


def where(schedule: str, share: int) -> str:
    """The schedule and the share of S-train in words."""
    return SCHEDULES[schedule] + ("" if share == 100 else f", {share} % of S-train")


def arms(images: pd.DataFrame, value: str = "dice") -> dict:
    """Scores by arm, for the rows per image of one network, schedule and test set.

    Arms are named "method amount", or "method amount shareN" with N percent of S-train. Scores are
    tables: a row for each generator and seed, a column for each image.
    """
    groups = images.groupby(["method", "amount", "share"], sort=False)
    return {
        f"{method} {amount}{_at(share)}": rows.pivot(
            index=["generator", "seed"], columns="id", values=value
        )
        for (method, amount, share), rows in groups
    }


def paired(*scores: pd.DataFrame) -> list[np.ndarray]:
    """Scores of `arms` as arrays (generators, seeds, images) of the seeds that all of them have.

    An arm without generators has one. ValueError if there is no common seed.
    """
    levels = [one.index.get_level_values("seed") for one in scores]
    seeds = [seed for seed in levels[0].unique() if all(seed in other for other in levels)]
    if not seeds:
        raise ValueError("the arms have no seed in common")
    return [
        np.stack([rows.droplevel(0).loc[seeds] for _, rows in one.groupby(level=0, sort=False)])
        for one in scores
    ]


def compare(first: pd.DataFrame, second: pd.DataFrame) -> dict:
    """`statistics.compare` of two arms of `arms`."""
    return statistics.compare(*paired(first, second))


def interval(scores: pd.DataFrame) -> tuple[float, float, float]:
    """`statistics.interval` of an arm of `arms`."""
    return statistics.interval(*paired(scores))


def _groups(images: pd.DataFrame):
    """(network, schedule, scores by arm, shares of S-train above 0, rows)."""
    for (network, schedule), rows in images.groupby(["network", "schedule"], sort=False):
        shares = sorted(set(rows["share"]) - {0}, reverse=True)
        yield network, schedule, arms(rows), shares, rows


def verdict(found: dict, p: float, margin: float = statistics.MARGIN) -> str:
    """The verdict on "this arm is better", from a `statistics.compare` and its corrected p value.

    Supported: the interval lies above zero and p is below 0.05. Ruled out: the interval excludes a
    gain of `margin`. Inconclusive otherwise, and if `found` names a reason why the design is
    `insensitive`.
    """
    if found.get("insensitive"):
        return "inconclusive"
    if found["low"] > 0 and p < 0.05:
        return "supported"
    return "ruled out" if found["high"] < margin else "inconclusive"


def with_interval(found: dict) -> str:
    """A difference with its 95 % interval."""
    return f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def p_text(p: float) -> str:
    """A p value as text; '' if it is NaN."""
    return "" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def sentence(claim: str, found: dict, p: float, outcome: str) -> str:
    """The claim, the outcome of its test and the numbers behind it, as text."""
    seeds = f"{found['seeds']} seed{'s' * (found['seeds'] > 1)}"
    if found["generators"] > 1:
        seeds += f" of each of {found['generators']} generators"
    elif "arm" in found and not _real(found["arm"]):
        seeds += " with one training of each generator"
    reason = f", {found['insensitive']}" if found.get("insensitive") else ""
    equals = "" if p < 0.001 else "= "
    return (
        f"{claim}: {outcome}{reason}. Difference {with_interval(found)}, p {equals}{p_text(p)} "
        f"(Holm), n = {found['images']} images, {seeds}; the smallest gain that would have "
        f"been seen is {found['detectable']:.3f} (80 % power, before Holm's correction)."
    )


def _assess(rows: list[dict], label: str = "claim", margin=statistics.MARGIN) -> pd.DataFrame:
    """A table of comparisons, each with a p value (Holm over all rows), verdict and sentence.

    `label` is the column that names the comparison.
    """
    if not rows:
        return pd.DataFrame(columns=[label, "verdict", "sentence"])
    p_holm = statistics.holm([row["p"] for row in rows])
    outcomes = [verdict(row, p, margin) for row, p in zip(rows, p_holm, strict=True)]
    sentences = [
        sentence(row[label], row, p, outcome)
        for row, p, outcome in zip(rows, p_holm, outcomes, strict=True)
    ]
    return pd.DataFrame(rows).assign(p_holm=p_holm, verdict=outcomes, sentence=sentences)


def _methods(rows: pd.DataFrame) -> list[str]:
    """The generators among the methods of rows per image."""
    found = [method for method in rows["method"].unique() if method not in (*ALONE, "base")]
    return [
        m for m in found if not m.startswith("controlnet_") and m.split("_")[-1] not in TREATMENTS
    ]


def _comparisons(images: pd.DataFrame, templates: dict):
    """A row per claim of `templates` whose two arms both exist: names, and `compare`."""
    for network, schedule, found, shares, rows in _groups(images):
        methods = _methods(rows)
        for share in shares:
            part = rows[(rows["share"] == share) & rows["method"].isin(methods)]
            amounts = sorted(set(part["amount"])) or [0]
            for text, arm, other in _pairs(found, templates, methods, amounts, network, share):
                names = {"claim": f"{text} ({where(schedule, share)})", "network": network}
                names |= {"schedule": schedule, "share": share, "arm": arm, "against": other}
                yield names | compare(*_alike(found, arm, other))


def _alike(found: dict, arm: str, other: str) -> list[pd.DataFrame]:
    """The scores of two arms of `arms`; of the same generators if they treat one's pairs two ways.

    Treatments are tried with the first generator alone, whose own pairs are what they change.
    """
    scores, methods = [found[arm], found[other]], sorted([arm.split()[0], other.split()[0]])
    if methods[1].startswith(f"{methods[0]}_"):
        own = [one.index.get_level_values("generator") for one in scores]
        scores = [
            one[levels.isin(own[0]) & levels.isin(own[1])]
            for one, levels in zip(scores, own, strict=True)
        ]
    return scores


def _pairs(found: dict, templates: dict, methods, amounts, network: str, share: int):
    """(text, arm, other arm) of the templates whose two arms both exist and differ."""
    for text, pair in templates.items():
        if share != 100 and not any("{at}" in part for part in pair):
            continue
        for method in methods if any("{m}" in part for part in pair) else [""]:
            words = {"a": amounts[0], "z": amounts[-1], "at": _at(share), "m": method}
            arm, other = (part.format(**words) for part in pair)
            repeated = len(amounts) == 1 and "{z}" in pair[0] and "{m}" not in text
            if arm != other and not repeated and {arm, other} <= set(found):
                words |= {"network": display_name(network), "m": display_name(method)}
                words |= {"a": f"{words['a']:,}", "z": f"{words['z']:,}"}
                yield text.format(**words), arm, other


def headroom(images: pd.DataFrame) -> pd.DataFrame:
    """What real pairs of G add to S-train: a row per network, schedule and share of S-train.

    `images` as for `table2_claims`, with the number of training `pairs`. `pairs` of the result are
    those added; `enough`, whether the interval lies above `statistics.MARGIN`; `alone`, Dice
    without them. Only for the largest number of pairs that was added.
    """
    rows = []
    for network, schedule, found, shares, part in _groups(images):
        for share in shares:
            own = part[part["share"] == share]
            most = own.loc[own["method"] == "real_pairs", "amount"].max()
            arm, alone = f"real_pairs {most:.0f}{_at(share)}", f"real 0{_at(share)}"
            if not {arm, alone} <= set(found):
                continue
            used = own[own["method"].isin(["real", "real_pairs"])]
            row = {"network": network, "schedule": schedule, "share": share}
            row |= {"pairs": int(used["pairs"].max() - used["pairs"].min())}
            row |= {"alone": interval(found[alone])[0]} | compare(found[arm], found[alone])
            adds = f"{row['pairs']:,} real pairs of G add {with_interval(row)} here"
            enough = bool(row["low"] > statistics.MARGIN)
            name = f"{display_name(network)}, {where(schedule, share)}"
            said = f"{name}: {'headroom' if enough else 'headroom not shown'}, {adds}."
            rows.append(row | {"adds": adds, "enough": enough, "sentence": said})
    columns = "network schedule share pairs alone difference low high adds enough sentence".split()
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def harder_half(images: pd.DataFrame) -> pd.DataFrame:
    """The rows of the half of the images that each network segments worst, by schedule.

    They are chosen by trainings on the smallest share of S-train, which are left out: chosen by an
    arm that is compared, hard images would look easier in the next one by chance alone.
    """
    parts = []
    for _, rows in images.groupby(["network", "schedule"], sort=False):
        least = rows.loc[(rows["method"] == "real") & (rows["share"] > 0), "share"].min()
        chosen = rows[(rows["method"] == "real") & (rows["share"] == least)]
        dice = chosen.groupby("id")["dice"].mean()
        hard = dice.index[dice <= dice.median()]
        parts.append(rows[rows["id"].isin(hard) & (rows["share"] > least)])
    return pd.concat(parts, ignore_index=True) if parts else images


def sensitivity(images: pd.DataFrame) -> dict:
    """Why claims cannot be judged, '' if they can, by (network, schedule, share of S-train).

    Real pairs of G must add more than `statistics.MARGIN`, and masks of other pairs, where they are
    tried, must be able to harm. Where a schedule has no such control, that of equal steps counts.
    """
    room = {(r.network, r.schedule, r.share): r for r in headroom(images).itertuples()}
    harm = {(r["network"], r["schedule"], r["share"]): r for r in _comparisons(images, HARM)}
    reasons = {}
    for key in images[["network", "schedule", "share"]].drop_duplicates().itertuples(index=False):
        network, _, share = key = tuple(key)
        found = room.get(key, room.get((network, "steps", share)))
        wrong = harm.get(key, harm.get((network, "steps", share)))
        reasons[key] = ""
        if found is None:
            reasons[key] = "its headroom was not measured: no real pairs of G were added"
        elif not found.enough:
            reasons[key] = f"headroom not shown: {found.adds}"
        elif wrong is not None and wrong["high"] < statistics.MARGIN:
            reasons[key] = f"insensitive: masks of other pairs cost {with_interval(wrong)} here"
    return reasons


def _judged(images: pd.DataFrame, templates: dict) -> pd.DataFrame:
    """The claims of `templates`; those on what synthetic pairs add depend on `sensitivity`."""
    reasons, rows = sensitivity(images), list(_comparisons(images, templates))
    for row in rows:
        of_pairs = not _real(row["arm"]) and "_shuffled" not in row["against"]
        key = row["network"], row["schedule"], row["share"]
        row["insensitive"] = reasons[key] if of_pairs else ""
    return _assess(rows)


def table2_claims(images: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims on Table 2 that a run can test: a row for each, with its sentence.

    `images`: a row per network, method, amount, share, schedule, generator, seed and id of one test
    set, with dice and the number of training pairs. Each claim is tested under each schedule and on
    each share of S-train; p values are corrected by Holm over all rows.
    """
    return _judged(images, CLAIMS)


def controls(images: pd.DataFrame) -> pd.DataFrame:
    """The control experiments, as claims of their own, corrected over all of them.

    `images` as for `table2_claims`.
    """
    return _judged(images, CONTROLS)


def survival(table: pd.DataFrame) -> list[str]:
    """For each claim of `table2_claims` tested under both schedules: whether the gain persists."""
    lines = []
    for (network, arm, against), rows in table.groupby(["network", "arm", "against"], sort=False):
        verdicts = dict(zip(rows["schedule"], rows["verdict"], strict=True))
        if set(verdicts) == set(SCHEDULES):
            supported = tuple(verdicts[name] == "supported" for name in ("epochs", "steps"))
            lost = supported[0] and verdicts["steps"] == "ruled out"
            conclusion = LONGER if lost else SURVIVAL[supported]
            lines.append(f"{display_name(network)}, {arm} against {against}: {conclusion}.")
    return lines


def table2_comparison(images: pd.DataFrame) -> pd.DataFrame:
    """Each arm against S-train alone under the same schedule and on the same share of it.

    `statistics.table` for every network, schedule and share that has S-train alone, with the arm's
    method and amount; `images` as for `table2_claims`.
    """
    tables = []
    for network, schedule, found, shares, _ in _groups(images):
        for share in shares:
            own = {n: x for n, x in found.items() if n.partition(" share")[2] == _at(share)[6:]}
            if (alone := f"real 0{_at(share)}") in own:
                part = statistics.table(own, alone, interval, compare)
                part.insert(0, "network", network)
                part.insert(1, "schedule", schedule)
                part.insert(2, "share", share)
                part["method"] = [arm.split()[0] for arm in part["arm"]]
                part["amount"] = [int(arm.split()[1]) for arm in part["arm"]]
                tables.append(part)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def generator_scores(quality: pd.DataFrame, measure: str) -> dict:
    """Scores (generator seeds, images) of a measure by method, for rows per method, seed and id."""
    return {
        method: rows.pivot(index="generator_seed", columns="id", values=measure).to_numpy()
        for method, rows in quality.groupby("method", sort=False)
    }


def compare_generators(quality: pd.DataFrame, measure: str) -> pd.DataFrame:
    """`statistics.table` of a measure of Table 1 against Pix2PixHD or, without it, the last method.

    Generators and images are resampled together. Where one of the two was trained once there is no
    p value: it would speak of that training, not of the method.
    """
    found = generator_scores(quality, measure)
    own = {name: len(x) for name, x in found.items()}  # an external generator has one set
    found = {name: np.repeat(x, max(own.values()) // len(x), axis=0) for name, x in found.items()}
    against = "pix2pixhd" if "pix2pixhd" in found else list(found)[-1]
    table = statistics.table(found, against)
    if "seeds" in table:
        both = table["arm"].map(own).clip(upper=own[against])
        table["seeds"] = both.where(table["seeds"].notna())
        once = table["seeds"] == 1
        table.loc[once, [name for name in table if name.startswith("p")]] = np.nan
    return table.drop(columns="equivalent", errors="ignore").assign(measure=measure)


def table1_claims(quality: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims on Table 1: ControlNet against Pix2PixHD, a row per measure.

    `quality`: a row per method, generator_seed and id with mse, psnr_255 (dB) and ssim. Differences
    are positive where the ControlNet is better. Empty unless both methods are present; not tested
    with one training of each.
    """
    rows = []
    if {"controlnet", "pix2pixhd"} <= set(quality["method"]):
        for measure, (words, sign) in IMAGE_CLAIMS.items():
            found = generator_scores(quality, measure)
            pair = [sign * found[method] for method in ("controlnet", "pix2pixhd")]
            text = f"ControlNet has {words} than Pix2PixHD"
            rows.append({"claim": text, "measure": measure} | statistics.compare(*pair))
    table = _assess(rows, margin=0)
    if rows and rows[0]["seeds"] == 1:
        table = table.assign(p=np.nan, p_images=np.nan, p_holm=np.nan, verdict="not tested")
        table["sentence"] = [
            f"{row.claim}: not tested, since each generator was trained once (`generator_seeds`). "
            f"Difference of these two {row.difference:+.3f}, 95 % interval over {row.images} "
            f"images {row.low:+.3f} to {row.high:+.3f}."
            for row in table.itertuples()
        ]
    return table


def groups(study) -> pd.DataFrame:
    """The subgroups of each image of a `dataset.Study`: id, diagnosis, lesion size, skin tone.

    Sizes as in the prompts (below 10 %, below 30 % of the image, larger); skin tones by the
    individual typology angle of the skin around the lesion.
    """
    tone = dataset.skin_tone(study.images, study.masks)
    names = np.full(len(tone), "unknown", dtype=object)
    for name, (low, high) in TONES.items():
        names[(tone >= low) & (tone < high)] = name
    return pd.DataFrame(
        {
            "id": study.table["id"].astype(str),
            "diagnosis": study.table["diagnosis"].fillna("").replace("", "unknown"),
            "lesion size": [prompts.lesion_size(mask) for mask in study.masks],
            "skin tone": names,
        }
    )


def subgroups(images: pd.DataFrame, group_table: pd.DataFrame, arm: str, against: str):
    """Dice of two arms within each subgroup, and their difference; a row per network and group.

    `images`: rows of one schedule and test set; `group_table`: from `groups`. Groups of one image
    have no interval. This analysis is exploratory: p values are left out.
    """
    rows = []
    for network, subset in images.groupby("network", sort=False):
        for column in group_table.columns[1:]:
            for value, part in subset.merge(group_table[["id", column]], on="id").groupby(column):
                found = arms(part)
                if not {arm, against} <= set(found):
                    continue
                result = compare(found[arm], found[against])
                if result["images"] == 1:
                    result |= {"low": np.nan, "high": np.nan}
                names = {"network": network, "group": column, "is": value, "n": result["images"]}
                means = {f"dice {n}": interval(found[n])[0] for n in (against, arm)}
                differences = {name: result[name] for name in ("difference", "low", "high")}
                rows.append(names | means | differences)
    return pd.DataFrame(rows)
