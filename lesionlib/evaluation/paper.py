"""The values reported in the paper (arXiv 2310.02906, Tables 1 and 2), for comparison only."""

import pandas as pd

TABLE1 = pd.DataFrame(
    [("pix2pixhd", 0.09, 58.80, 0.71), ("controlnet", 0.06, 61.64, 0.80)],
    columns=["method", "paper mse", "paper psnr_255", "paper ssim"],
)
_SYNTHETIC = {"pix2pixhd": (0.871, 0.903, 0.912), "controlnet": (0.912, 0.913, 0.914)}
TABLE2 = pd.DataFrame(
    [("unet", "real", 0, 0.861), ("dcsaunet", "real", 0, 0.903)]
    + [
        ("unet", method, rank, dice)
        for method, row in _SYNTHETIC.items()
        for rank, dice in enumerate(row, 1)
    ],
    columns=["network", "method", "rank", "paper dice"],
)  # rank 1, 2, 3: the paper's 1,000, 3,000 and 5,000 synthetic images

S_TRAIN = 700  # images of S that the paper trains on
AMOUNTS = (1000, 3000, 5000)  # its synthetic pairs
FOOTNOTE = (
    "The paper does not say which network its rows with synthetic pairs used: they stand beside "
    "the U-Net, which its text discusses, in the rows of the same rank (1,000, 3,000, 5,000 pairs)."
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
    "base": "base without ControlNet (chance)",
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
    return NAMES.get(text, text)


def ratio(amount: int, s_train: int) -> str:
    """The paper's amount that is the same multiple of S-train, within 5 %; else the multiple."""
    own = amount / s_train
    same = [one for one in AMOUNTS if abs(own * S_TRAIN / one - 1) < 0.05]
    return f"paper: {same[0]:,}" if same else f"{own:.2f} × S-train"


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
    added = f"{amount:,} {display_name(method)} ({ratio(amount, s_train)})"
    return f"{start} + {added}" if start else f"{added} only"


def labelled(table: pd.DataFrame, s_train: int, g: int) -> pd.DataFrame:
    """A table of arms (method, amount, share) with a column "trained on", the `training_set`."""
    arms = table[["method", "amount", "share"]].itertuples(index=False, name=None)
    return table.assign(**{"trained on": [training_set(*arm, s_train, g) for arm in arms]})


def join_table1(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 of a run, with the paper's values in further columns."""
    return table.merge(TABLE1, on="method", how="left")


def join_table2(table: pd.DataFrame) -> pd.DataFrame:
    """Table 2 of a run with the paper's Dice in a further column, amounts matched by rank.

    The paper does not say which network its rows with synthetic images used. They are assigned to
    the U-Net, the network that its text discusses, and to equal epochs, its schedule.
    """
    known = table["method"].isin(TABLE2["method"])
    amounts = sorted(set(table.loc[known, "amount"]) - {0})
    rank = table["amount"].map({0: 0} | {a: i for i, a in enumerate(amounts, 1)})
    reported = TABLE2.assign(schedule="epochs", share=100)
    keys = ["network", "method", "rank", "schedule", "share"]
    return table.assign(rank=rank).merge(reported, on=keys, how="left").drop(columns="rank")
