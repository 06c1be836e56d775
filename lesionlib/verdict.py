"""What the numbers of a run say of the paper's claims: confirmed, not confirmed, not resolvable."""

import pandas as pd

from lesionlib import statistics

CLAIMS = {  # what: its arm, the arm it is compared with; {a}: the smallest amount, {z}: the largest
    "ControlNet pairs improve {network}": ("controlnet {a}", "real 0"),
    "many ControlNet pairs improve {network}": ("controlnet {z}", "real 0"),
    "more ControlNet pairs help {network} more": ("controlnet {z}", "controlnet {a}"),
    "few ControlNet pairs beat as many of Pix2PixHD for {network}": (
        "controlnet {a}", "pix2pixhd {a}"),
    "many ControlNet pairs beat as many of Pix2PixHD for {network}": (
        "controlnet {z}", "pix2pixhd {z}"),
}


def scores(rows: pd.DataFrame, value: str = "dice"):
    """Scores (seeds, images) of one arm's rows, which have columns seed and id."""
    return rows.pivot(index="seed", columns="id", values=value).to_numpy()


def arms(images: pd.DataFrame) -> dict:
    """Scores (seeds, images) by "method amount" for rows per image of one network."""
    groups = images.groupby(["method", "amount"], sort=False)
    return {f"{method} {amount}": scores(rows) for (method, amount), rows in groups}


def of(found: dict, p: float, margin: float = statistics.MARGIN) -> str:
    """The verdict on "this arm is better" from `statistics.compare` and a corrected p value.

    Confirmed: the interval lies above zero and p below 0.05. Not confirmed: not even a gain of
    `margin` is within the interval. Else the design cannot tell.
    """
    if found["low"] > 0 and p < 0.05:
        return "confirmed"
    return "not confirmed" if found["high"] < margin else "not resolvable"


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


def claims(images: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims on Table 2 that a run can judge: a row for each, with its sentence.

    `images`: a row per network, method, amount, seed and id, with dice. P values are corrected by
    Holm over all rows.
    """
    rows = []
    for network, some in images.groupby("network", sort=False):
        found, amounts = arms(some), sorted(set(some["amount"]) - {0})
        if not amounts:
            continue
        names = {"network": network, "a": amounts[0], "z": amounts[-1]}
        for claim, pair in CLAIMS.items():
            text, arm, other = (part.format(**names) for part in (claim, *pair))
            said_before = len(amounts) == 1 and "{z}" in pair[0]
            if not said_before and {arm, other} <= set(found):
                result = statistics.compare(found[arm], found[other])
                rows.append({"claim": text, "arm": arm, "against": other} | result)
    if not rows:
        return pd.DataFrame(columns=["claim", "verdict", "sentence"])
    table = pd.DataFrame(rows)
    table["p_holm"] = statistics.holm(table["p"])
    records = table.to_dict("records")
    table["verdict"] = [of(row, row["p_holm"]) for row in records]
    table["sentence"] = [
        sentence(row["claim"], row, row["p_holm"], said)
        for row, said in zip(records, table["verdict"], strict=True)
    ]
    return table
