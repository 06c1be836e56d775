"""The paper's claims tested on a run: confirmed, not confirmed, or not resolvable."""

import numpy as np
import pandas as pd

from lesionlib.data import dataset, prompts
from lesionlib.evaluation import statistics
from lesionlib.evaluation.paper import display_name

CLAIMS = {  # claim: its arm, the reference arm; {a}: the smallest amount, {z}: the largest
    "{a} ControlNet pairs improve the {network}": ("controlnet {a}", "real 0"),
    "{z} ControlNet pairs improve the {network}": ("controlnet {z}", "real 0"),
    "{z} ControlNet pairs help the {network} more than {a}": ("controlnet {z}", "controlnet {a}"),
    "{a} ControlNet pairs help the {network} more than {a} of Pix2PixHD": (
        "controlnet {a}",
        "pix2pixhd {a}",
    ),
    "{z} ControlNet pairs help the {network} more than {z} of Pix2PixHD": (
        "controlnet {z}",
        "pix2pixhd {z}",
    ),
}
CONTROLS = {  # control experiments that the paper does not report; {m}: each generator
    "classical augmentation against none": ("classical 0", "real 0"),
    "{m}: few pairs against classical augmentation": ("{m} {a}", "classical 0"),
    "{m}: synthetic pairs only against real ones only": ("{m} {z} share0", "real 0"),
    "real masks re-used against the main masks": ("controlnet_real {a}", "controlnet {a}"),
    "fitted masks against the main masks": ("controlnet_fitted {a}", "controlnet {a}"),
    "automatic masks against the main masks": ("controlnet_paper {a}", "controlnet {a}"),
    "empty prompts against full ones": ("controlnet_empty {a}", "controlnet {a}"),
    "{m}: filtered by mask fidelity against unfiltered": ("{m}_best {a}", "{m} {a}"),
    "images without control against the ControlNet's": ("base {a}", "controlnet {a}"),
}
SCHEDULES = {"epochs": "equal epochs", "steps": "equal optimiser steps"}
TONES = {"light": (41, 90), "intermediate": (28, 41), "tan or darker": (-90, 28)}  # ITA, degrees

IMAGE_CLAIMS = {  # measure: claim, sign of an improvement
    "mse": ("a lower MSE", -1),
    "psnr_255": ("a higher PSNR", 1),
    "ssim": ("a higher SSIM", 1),
}
SURVIVAL = {  # confirmed with equal epochs, with equal steps: conclusion
    (True, True): "better, also with equal optimiser steps",
    (True, False): "better only when it is trained for more steps: the gain does not survive "
    "equal training",
    (False, True): "better with equal optimiser steps, though not with equal epochs",
    (False, False): "not shown to be better under either schedule",
}
LOW_DATA = (
    "network schedule share arm dice dice_low dice_high difference low high p detectable images "
    "seeds"
).split()


def scores(rows: pd.DataFrame, value: str = "dice"):
    """Scores (seeds, images) of one arm, whose `rows` have columns seed, id and `value`."""
    return rows.pivot(index="seed", columns="id", values=value).to_numpy()


def arms(images: pd.DataFrame, value: str = "dice") -> dict:
    """Scores (seeds, images) by arm, for the rows per image of one network, schedule and test set.

    Arms are named "method amount", or "method amount shareN" with N percent of S-train.
    """
    groups = images.groupby(["method", "amount", "share"], sort=False)
    return {
        f"{method} {amount}" + (f" share{share}" if share != 100 else ""): scores(rows, value)
        for (method, amount, share), rows in groups
    }


def _groups(images: pd.DataFrame):
    """(network, schedule, scores by arm, amounts above 0) where arms have synthetic pairs."""
    for (network, schedule), rows in images.groupby(["network", "schedule"], sort=False):
        if amounts := sorted(set(rows["amount"]) - {0}):
            yield network, schedule, arms(rows), amounts


def verdict(found: dict, p: float, margin: float = statistics.MARGIN) -> str:
    """The verdict on "this arm is better", from a `statistics.compare` and its corrected p value.

    Confirmed: the interval lies above zero and p is below 0.05. Not confirmed: the interval
    excludes a gain of `margin`. Not resolvable otherwise: the design lacks power.
    """
    if found["low"] > 0 and p < 0.05:
        return "confirmed"
    return "not confirmed" if found["high"] < margin else "not resolvable"


def direction(found: dict, p: float) -> str:
    """better, worse, equivalent (by the margin of `statistics.compare`) or not resolvable."""
    if p < 0.05 and found["low"] > 0:
        return "better"
    if p < 0.05 and found["high"] < 0:
        return "worse"
    return "equivalent" if found["equivalent"] else "not resolvable"


def sentence(claim: str, found: dict, p: float, outcome: str) -> str:
    """The claim, the outcome of its test and the numbers behind it, as text."""
    text = (
        f"{claim}: {outcome}. Difference {found['difference']:+.3f}, 95 % interval "
        f"{found['low']:+.3f} to {found['high']:+.3f}, p = {p:.2g} (Holm), n = {found['images']} "
        f"images, {found['seeds']} seed{'s' * (found['seeds'] > 1)}"
    )
    if outcome == "not resolvable":
        text += f"; this design would have shown {found['detectable']:.3f} with 80 % power"
    return text + "."


def _assess(rows: list[dict], label: str, assess) -> pd.DataFrame:
    """A table of comparisons, each with a p value (Holm over all rows), verdict and sentence.

    `label` is the column that names the comparison; `assess(row, p)` gives the verdict.
    """
    if not rows:
        return pd.DataFrame(columns=[label, "verdict", "sentence"])
    p_holm = statistics.holm([row["p"] for row in rows])
    outcomes = [assess(row, p) for row, p in zip(rows, p_holm, strict=True)]
    sentences = [
        sentence(row[label], row, p, outcome)
        for row, p, outcome in zip(rows, p_holm, outcomes, strict=True)
    ]
    return pd.DataFrame(rows).assign(p_holm=p_holm, verdict=outcomes, sentence=sentences)


def _pairs(found: dict, templates: dict, methods, amounts, **names):
    """(text, arm, reference) of the templates whose two arms both exist and differ."""
    for text, pair in templates.items():
        for method in methods if "{m}" in text else [""]:
            words = dict(names, m=method, a=amounts[0], z=amounts[-1])
            arm, reference = (part.format(**words) for part in pair)
            repeated = len(amounts) == 1 and "{z}" in pair[0] and "{m}" not in text
            if arm != reference and not repeated and {arm, reference} <= set(found):
                yield text.format(**words), arm, reference


def table2_claims(images: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims on Table 2 that a run can test: a row for each, with its sentence.

    `images`: a row per network, method, amount, share, schedule, seed and id of one test set, with
    dice. Each claim is tested under each schedule; p values are corrected by Holm over all rows.
    """
    rows = []
    for network, schedule, found, amounts in _groups(images):
        for text, arm, other in _pairs(found, CLAIMS, [], amounts, network=display_name(network)):
            text = f"{text} ({SCHEDULES[schedule]})"
            names = {"claim": text, "schedule": schedule, "network": network}
            result = statistics.compare(found[arm], found[other])
            rows.append(names | {"arm": arm, "against": other} | result)
    return _assess(rows, "claim", verdict)


def survival(table: pd.DataFrame) -> list[str]:
    """For each claim of `table2_claims` tested under both schedules: whether the gain persists."""
    lines = []
    for (network, arm, against), rows in table.groupby(["network", "arm", "against"], sort=False):
        verdicts = dict(zip(rows["schedule"], rows["verdict"], strict=True))
        if set(verdicts) == set(SCHEDULES):
            confirmed = tuple(verdicts[name] == "confirmed" for name in ("epochs", "steps"))
            lines.append(
                f"{display_name(network)}, {arm} against {against}: {SURVIVAL[confirmed]}."
            )
    return lines


def controls(images: pd.DataFrame, methods) -> pd.DataFrame:
    """The control experiments: a row per comparison, corrected over all of them.

    `images` as for `table2_claims`; `methods`: names of the generators. Verdicts are those of
    `direction`.
    """
    rows = []
    for network, schedule, found, amounts in _groups(images):
        for text, arm, other in _pairs(found, CONTROLS, methods, amounts):
            names = {"network": network, "schedule": schedule, "comparison": text}
            result = statistics.compare(found[arm], found[other])
            rows.append(names | {"arm": arm, "against": other} | result)
    return _assess(rows, "comparison", direction)


def low_data(images: pd.DataFrame) -> pd.DataFrame:
    """Dice by share of S-train: a row per network, schedule, arm and share.

    Arms with synthetic pairs are compared with the same share alone (`statistics.compare`). Only
    arms with all shares are listed.
    """
    rows = []
    for (network, schedule), subset in images.groupby(["network", "schedule"], sort=False):
        if set(subset["share"]) <= {0, 100}:
            continue
        few = sorted(set(subset["amount"]))[:2]  # no synthetic pairs, and the smallest amount
        kept = (
            subset["amount"].isin(few) & (subset["share"] > 0) & (subset["method"] != "classical")
        )
        for share, part in subset[kept].groupby("share"):
            found = {name.split()[0]: value for name, value in arms(part).items()}
            for name, value in found.items() if "real" in found else ():
                row = {"network": network, "schedule": schedule, "share": share, "arm": name}
                row |= dict(
                    zip(("dice", "dice_low", "dice_high"), statistics.interval(value), strict=True)
                )
                if name != "real":
                    row |= statistics.compare(value, found["real"])
                rows.append(row)
    table = pd.DataFrame(rows, columns=LOW_DATA)
    counts = table.groupby("arm")["share"].nunique()
    return table[table["arm"].isin(counts.index[counts == table["share"].nunique()])]


def generator_scores(quality: pd.DataFrame, measure: str) -> dict:
    """Scores (generator seeds, images) of a measure by method, for rows per method, seed and id."""
    return {
        method: rows.pivot(index="generator_seed", columns="id", values=measure).to_numpy()
        for method, rows in quality.groupby("method", sort=False)
    }


def compare_generators(quality: pd.DataFrame, measure: str) -> pd.DataFrame:
    """`statistics.table` of a measure of Table 1 against Pix2PixHD or, without it, the last method.

    Generators and images are resampled together. With one training of each there is no p value:
    it would speak of these trainings, not of the methods; the interval is one over images.
    """
    found = generator_scores(quality, measure)
    seeds = max(map(len, found.values()))  # an external generator has one set, whatever the seed
    found = {name: np.repeat(x, seeds // len(x), axis=0) for name, x in found.items()}
    table = statistics.table(found, "pix2pixhd" if "pix2pixhd" in found else list(found)[-1])
    if "seeds" in table:
        alone = table["seeds"] == 1
        table.loc[alone, [name for name in table if name.startswith("p")]] = np.nan
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
    table = _assess(rows, "claim", lambda found, p: verdict(found, p, margin=0))
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
                result = statistics.compare(found[arm], found[against])
                if result["images"] == 1:
                    result |= {"low": np.nan, "high": np.nan}
                names = {"network": network, "group": column, "is": value, "n": result["images"]}
                means = {f"dice {name}": found[name].mean() for name in (against, arm)}
                differences = {name: result[name] for name in ("difference", "low", "high")}
                rows.append(names | means | differences)
    return pd.DataFrame(rows)
