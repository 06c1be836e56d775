"""The values reported in the paper (arXiv 2310.02906, Tables 1 and 2), for comparison only."""

import math

import pandas as pd

TABLE1 = pd.DataFrame(
    [("pix2pixhd", 0.09, 58.80, 0.71), ("controlnet", 0.06, 61.64, 0.80)],
    columns=["method", "paper mse", "paper psnr_255", "paper ssim"],
)
S_TRAIN = 700  # images of S that the paper trains on
AMOUNTS = (1000, 3000, 5000)  # its synthetic pairs
_SYNTHETIC = {"pix2pixhd": (0.871, 0.903, 0.912), "controlnet": (0.912, 0.913, 0.914)}
TABLE2 = pd.DataFrame(
    [("unet", "real", 0, 0.861), ("dcsaunet", "real", 0, 0.903)]
    + [
        ("unet", method, amount, dice)
        for method, row in _SYNTHETIC.items()
        for amount, dice in zip(AMOUNTS, row, strict=True)
    ],
    columns=["network", "method", "paper amount", "paper dice"],
)
FOOTNOTE = (
    "The paper trained with equal epochs and does not say which network its rows with synthetic "
    "pairs used: its Dice stands beside the U-Net, which its text discusses, in the rows with the "
    "same multiple of S-train, under equal epochs where the run has them."
)
NAMES = {
    "real": "S-train alone",
    "real_pairs": "real pairs of G",
    "classical": "classical augmentation",
    "controlnet": "ControlNet",
    "pix2pixhd": "Pix2PixHD",
    "pix2pixhd_plus": "Pix2PixHD+ (ours)",
    "unet": "U-Net",
    "unet_imagenet": "U-Net with an ImageNet encoder",
    "dcsaunet": "DCSAU-Net",
    "base": "base without ControlNet",
}


ENDINGS = {  # of methods: what is changed
    "best": "highest mask fidelity",
    "shuffled": "masks of other pairs",
    "first": "before the real ones",
    "mixed": "half of each batch",
    "paper": "automatic masks",
    "real": "masks of G",
    "fitted": "fitted masks",
    "empty": "empty prompts",
    "uniform": "uniform prompts",
}


def display_name(text: str) -> str:
    """The display name of a method or network."""
    method, _, ending = text.rpartition("_")
    if text not in NAMES and ending in ENDINGS:
        return f"{display_name(method)}, {ENDINGS[ending]}"
    if method and (seed := ending.removeprefix("seed")).isdigit():
        return f"{display_name(method)}, seed {seed}"
    return NAMES.get(text, text)


def _papers(amount: float, s_train: float) -> float:
    """The paper's amount that is the same multiple of S-train, within 5 %; NaN if there is none."""
    own = amount / s_train * S_TRAIN
    return next((one for one in (0, *AMOUNTS) if abs(own - one) <= 0.05 * one), math.nan)


def ratio(amount: int, s_train: int) -> str:
    """The paper's amount that is the same multiple of S-train; else the multiple."""
    same = _papers(amount, s_train)
    return f"{amount / s_train:.2f} × S-train" if math.isnan(same) else f"paper: {same:,}"


def training_set(method: str, amount: int, share: int, s_train: int, g: int) -> str:
    """What an arm is trained on, as the name of its row; `s_train` and `g`: pairs of these parts.

    `share` is in percent of S-train, `amount` of real_pairs in percent of G.
    """
    real = round(s_train * share / 100)
    start = {100: "S-train", 0: ""}.get(share, f"{share} % of S-train ({real:,})")
    if method == "classical":
        return f"{start}, classical augmentation"
    if not amount:
        return f"{start} alone"
    if method == "real_pairs":
        return f"{start} + {round(g * amount / 100):,} real pairs of G"
    added = f"{amount:,} {display_name(method)}"
    if 0 < share < 100:
        return f"{start} + {added} ({amount / real:.2f} × these)"
    added += f" ({ratio(amount, s_train)})"
    return f"{start} + {added}" if start else f"{added} only"


def labelled(table: pd.DataFrame, s_train: int, g: int) -> pd.DataFrame:
    """A table of arms (method, amount, share) with a column "trained on", the `training_set`."""
    arms = table[["method", "amount", "share"]].itertuples(index=False, name=None)
    return table.assign(**{"trained on": [training_set(*arm, s_train, g) for arm in arms]})


def join_table1(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 of a run, with the paper's values in further columns."""
    return table.merge(TABLE1, on="method", how="left")


def join_table2(table: pd.DataFrame) -> pd.DataFrame:
    """Table 2 of a run with the paper's Dice in a further column, where amounts correspond.

    They do as multiples of S-train, whose number of `pairs` the row of S-train alone has. The paper
    does not say which network its rows with synthetic images used. They are assigned to the U-Net,
    the network that its text discusses, and to equal epochs, its schedule, or to equal steps where
    the run has no equal epochs.
    """
    whole = table["share"] == 100
    s_train = table.loc[whole & (table["method"] == "real"), "pairs"].min()
    arm = ["network", "method", "amount", "share"]
    known = table[table["schedule"] == "epochs"][arm].apply(tuple, axis=1)
    stands = (table["schedule"] == "epochs") | ~table[arm].apply(tuple, axis=1).isin(known)
    amounts = table["amount"].map(lambda amount: _papers(amount, s_train))
    joined = table.assign(**{"paper amount": amounts.where(whole & stands)}).merge(
        TABLE2, on=["network", "method", "paper amount"], how="left"
    )
    return joined.drop(columns="paper amount")
