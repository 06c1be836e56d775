"""The style of every figure: colours and markers of methods, names of quantities, text that fits.

The colours are those of Okabe and Ito (2008), which can be told apart with colour blindness.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.textpath import TextPath

from lesionlib.evaluation.paper import ENDINGS
from lesionlib.segmentation.grid import of_generator

plt.style.use(Path(__file__).with_name("templates") / "print.mplstyle")
PAGE = 7.0  # inches: the widest figure, as wide as the text of a page
NEUTRAL = {"color": "0.35", "marker": "o"}  # of what is no method
METHODS = {  # method: its colour and marker in every figure
    "real": ("black", "o"),
    "real_pairs": ("black", "*"),
    "classical": ("#CC79A7", "v"),
    "controlnet": ("#0072B2", "s"),
    "pix2pixhd": ("#D55E00", "^"),
    "pix2pixhd_plus": ("#009E73", "D"),
    "base": ("#56B4E9", "P"),
    "chance": ("0.55", "X"),
}
EXTERNAL = (("#E69F00", "p"), ("#8C510A", "h"), ("#5E3C99", "<"), ("#7F7F00", ">"))
LABELS = {  # column of a table: its name in figures, with the unit
    "loss": "training loss",
    "held_out_loss": "held-out loss",
    "wrong_mask_loss": "loss with wrong masks",
    "mask_fidelity": "mask fidelity (Dice)",
    "d_real": "discriminator, real",
    "d_fake": "discriminator, synthetic",
    "g_gan": "generator, adversarial",
    "g_feat": "generator, features",
    "mse": "MSE",
    "psnr_1": "PSNR (dB)",
    "psnr_255": "PSNR (dB, data range 255)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "area": "area (share of the image)",
    "column": "centre (share of the width)",
    "solidity": "solidity (share of the convex hull)",
    "contact": "contact (share of the image's border)",
}


def looks(methods) -> dict[str, dict]:
    """Colour and marker of each method, as keyword arguments for `plot`.

    A variant ("controlnet_best") and a further training ("controlnet_seed1") have the colour of
    their method, and a hollow marker. External
    generators share the spare colours in alphabetical order, so pass all that a run has.
    """
    known, spare = dict(METHODS), iter(EXTERNAL * len(methods))
    found = {}
    for name in sorted(methods):
        own = of_generator(name)[0]
        method, _, ending = own.rpartition("_")
        own = method if own not in METHODS and ending in ENDINGS else own
        known[own] = known.get(own) or next(spare)
        colour, marker = known[own]
        face = colour if own == name else "white"
        found[name] = {"color": colour, "marker": marker, "markerfacecolor": face}
    return {name: found[name] for name in methods}


def label(column: str) -> str:
    """The name of a table's column in figures; one that has none keeps its own."""
    return LABELS.get(column, column)


def width(text: str, size: float) -> float:
    """The width in inches of one line of text of this size in points."""
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0


def wrapped(text: str, inches: float, size: float) -> str:
    """The text in lines of at most this width; a longer word has a line of its own."""
    lines = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else ""
        if lines and width(joined, size) <= inches:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(lines)


def legend_below(fig, handles):
    """A legend below all axes, in as many columns as fit the figure."""
    size = plt.rcParams["legend.fontsize"]
    widest = max(width(handle.get_label(), size) for handle in handles)
    columns = max(1, min(len(handles), int(fig.get_figwidth() / (widest + 0.6))))
    fig.legend(handles=handles, loc="outside lower center", ncols=columns)
