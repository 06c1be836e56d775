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

NAMES = {
    "real": "S-train alone",
    "controlnet": "ControlNet",
    "pix2pixhd": "Pix2PixHD",
    "pix2pixhd_plus": "Pix2PixHD+ (ours)",
    "unet": "U-Net",
    "dcsaunet": "DCSAU-Net",
    "base": "base without ControlNet (chance)",
}


def display_name(text: str) -> str:
    """The display name of a method or network."""
    return NAMES.get(text, text)


def join_table1(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 of a run, with the paper's values in further columns."""
    return table.merge(TABLE1, on="method", how="left")


def join_table2(table: pd.DataFrame) -> pd.DataFrame:
    """Table 2 of a run with the paper's Dice in a further column, amounts matched by rank.

    The paper does not say which network its rows with synthetic images used. They are assigned to
    the U-Net, the network that its text discusses, and to equal epochs, its schedule.
    """
    amounts = sorted(set(table["amount"]) - {0})
    rank = table["amount"].map({0: 0} | {a: i for i, a in enumerate(amounts, 1)})
    reported = TABLE2.assign(schedule="epochs")
    keys = ["network", "method", "rank", "schedule"]
    return table.assign(rank=rank).merge(reported, on=keys, how="left").drop(columns="rank")
