"""What the numbers of a run say of the paper's claims: confirmed, not confirmed, not resolvable."""

import numpy as np
import pandas as pd

from lesionlib.data import dataset, prompts
from lesionlib.evaluation import statistics
from lesionlib.evaluation.paper import named

CLAIMS = {  # what: its arm, the arm it is compared with; {a}: the smallest amount, {z}: the largest
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
CONTROLS = {  # the same for what the paper left out; {m}: each generator
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

LOW_DATA = [
    "network",
    "schedule",
    "share",
    "arm",
    "dice",
    "dice_low",
    "dice_high",
    "difference",
    "low",
    "high",
    "p",
    "detectable",
    "images",
    "seeds",
]


def scores(rows: pd.DataFrame, value: str = "dice"):
    """Scores (seeds, images) of one arm's rows, which have columns seed and id."""
    return rows.pivot(index="seed", columns="id", values=value).to_numpy()


def arms(images: pd.DataFrame, value: str = "dice") -> dict:
    """Scores (seeds, images) by arm, for the rows per image of one network, schedule and test.

    Arms are called "method amount", and "method amount shareN" for N percent of S-train.
    """
    groups, found = images.groupby(["method", "amount", "share"], sort=False), {}
    for (method, amount, share), rows in groups:
        name = f"{method} {amount}" + (f" share{share}" if share != 100 else "")
        found[name] = scores(rows, value)
    return found


def verdict(found: dict, p: float, margin: float = statistics.MARGIN) -> str:
    """The verdict on "this arm is better" from `statistics.compare` and a corrected p value.

    Confirmed: the interval lies above zero and p below 0.05. Not confirmed: not even a gain of
    `margin` is within the interval. Else the design cannot tell.
    """
    if found["low"] > 0 and p < 0.05:
        return "confirmed"
    return "not confirmed" if found["high"] < margin else "not resolvable"


def direction(found: dict, p: float) -> str:
    """better, worse, equivalent (within the margin of `statistics.compare`), or not resolvable."""
    if p < 0.05 and found["low"] > 0:
        return "better"
    if p < 0.05 and found["high"] < 0:
        return "worse"
    return "equivalent" if found["equivalent"] else "not resolvable"


def sentence(claim: str, found: dict, p: float, said: str) -> str:
    """One sentence with the numbers behind the verdict."""
    text = (
        f"{claim}: {said}. Difference {found['difference']:+.3f}, 95 % interval "
        f"{found['low']:+.3f} to {found['high']:+.3f}, p = {p:.2g} (Holm), n = {found['images']} "
        f"images, {found['seeds']} seed{'s' * (found['seeds'] > 1)}"
    )
    if said == "not resolvable":
        text += f"; this design would have shown {found['detectable']:.3f} with 80 % power"
    return text + "."


def _judged(rows: list[dict], what: str, assess) -> pd.DataFrame:
    """Rows of comparisons with p values corrected over all of them, a verdict and a sentence."""
    if not rows:
        return pd.DataFrame(columns=[what, "verdict", "sentence"])
    table = pd.DataFrame(rows)
    table["p_holm"] = statistics.holm(table["p"])
    records = table.to_dict("records")
    table["verdict"] = [assess(row, row["p_holm"]) for row in records]
    table["sentence"] = [
        sentence(row[what], row, row["p_holm"], said)
        for row, said in zip(records, table["verdict"], strict=True)
    ]
    return table


def _pairs(found: dict, templates: dict, methods, amounts, **names):
    """(text, arm, other) of the templates whose two arms are both there and not the same."""
    for text, pair in templates.items():
        for method in methods if "{m}" in text else [""]:
            words = dict(names, m=method, a=amounts[0], z=amounts[-1])
            arm, other = (part.format(**words) for part in pair)
            said_before = len(amounts) == 1 and "{z}" in pair[0] and "{m}" not in text
            if arm != other and not said_before and {arm, other} <= set(found):
                yield text.format(**words), arm, other


def table2_claims(images: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims on Table 2 that a run can judge: a row for each, with its sentence.

    `images`: a row per network, method, amount, share, schedule, seed and id of one test set, with
    dice. Each claim is judged under each schedule; p values are corrected by Holm over all rows.
    """
    rows = []
    for (network, schedule), some in images.groupby(["network", "schedule"], sort=False):
        found, amounts = arms(some), sorted(set(some["amount"]) - {0})
        if amounts:
            for text, arm, other in _pairs(found, CLAIMS, [], amounts, network=named(network)):
                text = f"{text} ({SCHEDULES[schedule]})"
                names = {"claim": text, "schedule": schedule, "network": network}
                result = statistics.compare(found[arm], found[other])
                rows.append(names | {"arm": arm, "against": other} | result)
    return _judged(rows, "claim", verdict)


def survival(table: pd.DataFrame) -> list[str]:
    """For each claim of `table2_claims` judged under both schedules: what is left of it."""
    lines = []
    for (network, arm, against), rows in table.groupby(["network", "arm", "against"], sort=False):
        said = dict(zip(rows["schedule"], rows["verdict"], strict=True))
        if set(said) != set(SCHEDULES):
            continue
        longer, equal = (said[name] == "confirmed" for name in ("epochs", "steps"))
        kept = {
            (True, True): "better, also with equal optimiser steps",
            (True, False): "better only when it is trained for more steps: the gain does not "
            "survive equal training",
            (False, True): "better with equal optimiser steps, though not with equal epochs",
            (False, False): "not shown to be better under either schedule",
        }
        lines.append(f"{named(network)}, {arm} against {against}: {kept[longer, equal]}.")
    return lines


def controls(images: pd.DataFrame, methods) -> pd.DataFrame:
    """What the arms beside the paper's table say: a row per comparison, corrected over all.

    `images` as for `table2_claims`. The verdict is `direction`'s.
    """
    rows = []
    for (network, schedule), some in images.groupby(["network", "schedule"], sort=False):
        found, amounts = arms(some), sorted(set(some["amount"]) - {0})
        if amounts:
            for text, arm, other in _pairs(found, CONTROLS, methods, amounts):
                result = statistics.compare(found[arm], found[other])
                names = {"network": network, "schedule": schedule, "comparison": text}
                rows.append(names | {"arm": arm, "against": other} | result)
    return _judged(rows, "comparison", direction)


def low_data(images: pd.DataFrame) -> pd.DataFrame:
    """Dice against the share of S-train, a row per network, schedule, arm and share.

    Arms with synthetic pairs are compared with the same share alone (`statistics.compare`).
    """
    rows = []
    for (network, schedule), some in images.groupby(["network", "schedule"], sort=False):
        if set(some["share"]) <= {0, 100}:
            continue
        few = sorted(set(some["amount"]))[:2]  # none, and the smallest amount
        plain = some[some["amount"].isin(few) & (some["share"] > 0)]
        plain = plain[plain["method"] != "classical"]
        for share, part in plain.groupby("share"):
            found = {name.split()[0]: value for name, value in arms(part).items()}
            if "real" not in found:
                continue
            for name, value in found.items():
                mean, low, high = statistics.interval(value)
                row = {
                    "network": network,
                    "schedule": schedule,
                    "share": share,
                    "arm": name,
                    "dice": mean,
                    "dice_low": low,
                    "dice_high": high,
                }
                if name != "real":
                    row |= statistics.compare(value, found["real"])
                rows.append(row)
    table = pd.DataFrame(rows, columns=LOW_DATA)
    counts = table.groupby("arm")["share"].nunique()
    return table[table["arm"].isin(counts.index[counts == table["share"].nunique()])]


IMAGE_CLAIMS = {
    "mse": ("a lower MSE", -1),
    "psnr_255": ("a higher PSNR", 1),
    "ssim": ("a higher SSIM", 1),
}


def table1_claims(quality: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims on Table 1: a row per measure of ControlNet against Pix2PixHD.

    `quality`: a row per method and id with mse, psnr_255 (dB) and ssim. Differences are positive
    where the ControlNet is better. Empty unless both methods are there.
    """
    rows = []
    if {"controlnet", "pix2pixhd"} <= set(quality["method"]):
        for measure, (words, sign) in IMAGE_CLAIMS.items():
            wide = quality.pivot(index="id", columns="method", values=measure)
            pair = [sign * wide[method].to_numpy() for method in ("controlnet", "pix2pixhd")]
            text = f"ControlNet has {words} than Pix2PixHD"
            rows.append({"claim": text, "measure": measure} | statistics.compare(*pair))
    return _judged(rows, "claim", lambda found, p: verdict(found, p, margin=0))


def groups(study) -> pd.DataFrame:
    """Subgroups of the images of a `dataset.Study`: columns id, diagnosis, lesion size, skin tone.

    Sizes are those of the prompts (below 10 %, below 30 % of the image, more); skin tones by the
    individual typology angle of the skin around the lesion.
    """
    tone = dataset.skin_tone(study.images, study.masks)
    names = np.full(len(tone), "unknown", dtype=object)
    for name, (low, high) in TONES.items():
        names[(tone >= low) & (tone < high)] = name
    size = [prompts.lesion_size(mask) for mask in study.masks]
    known = study.table["diagnosis"].fillna("").replace("", "unknown")
    return pd.DataFrame(
        {
            "id": study.table["id"].astype(str),
            "diagnosis": known,
            "lesion size": size,
            "skin tone": names,
        }
    )


def subgroups(images: pd.DataFrame, of_image: pd.DataFrame, arm: str, against: str):
    """Dice of two arms within each subgroup, and their difference; a row per network and group.

    `images`: rows of one schedule and test set; `of_image`: from `groups`. Groups of one image
    have no interval. These are looks, not tests: p values are left out.
    """
    rows = []
    for network, some in images.groupby("network", sort=False):
        for kind in of_image.columns[1:]:
            labelled = some.merge(of_image[["id", kind]], on="id")
            for value, part in labelled.groupby(kind):
                found = arms(part)
                if not {arm, against} <= set(found):
                    continue
                result = statistics.compare(found[arm], found[against])
                if result["images"] == 1:
                    result |= {"low": np.nan, "high": np.nan}
                rows.append(
                    {
                        "network": network,
                        "group": kind,
                        "is": value,
                        "n": result["images"],
                        f"dice {against}": found[against].mean(),
                        f"dice {arm}": found[arm].mean(),
                    }
                    | {name: result[name] for name in ("difference", "low", "high")}
                )
    return pd.DataFrame(rows)
