"""Figures of notebooks 02 and 03 that explain a method, and the sliders of the mask recipe."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from matplotlib.lines import Line2D

from lesionlib.masks import recipe as recipes
from lesionlib.report import plots, style

SLIDERS = {  # parameter of the recipe: its smallest and largest value in notebook 02
    "min_radius": (0.05, 0.4),
    "blur": (0.0, 0.1),
    "grid": (2, 12),
    "displacement": (0.0, 0.15),
    "element": (0.0, 0.3),
}
SHOWN = 6  # values of each parameter, and DDIM steps, in a row of pictures


def _attempt(size: int, seed: int, index: int, recipe) -> dict[str, np.ndarray]:
    """The first shape drawn for a mask, after each step, also if it is to be rejected."""
    rng = np.random.default_rng([seed, index])
    return recipes.paper_shape(rng, size, recipe, show=True)


def recipe_values(size: int, seed: int, index: int, recipe) -> dict[str, list[np.ndarray]]:
    """A mask under each value of one parameter of the recipe, a row per parameter (`SLIDERS`).

    They are shown as they are drawn, also where they are no single region.
    """
    rows = {}
    for name, (low, high) in SLIDERS.items():
        values = np.linspace(low, high, SHOWN).round(2)
        values = [int(value) for value in values] if name == "grid" else values
        drawn = [_attempt(size, seed, index, replace(recipe, **{name: x})) for x in values]
        rows[f"{name} {low:g} to {high:g}"] = [steps["open and close"] for steps in drawn]
    return rows


def is_attended() -> bool:
    """Whether a person runs the cell: papermill and nbconvert say that they answer no question."""
    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent("shell") if kernel else {}
    return bool(parent.get("content", {}).get("allow_stdin"))


def show_steps(size: int, seed: int, index: int, recipe):
    """Display the steps of one mask, and whether the recipe keeps it."""
    pictures = _attempt(size, seed, index, recipe)
    kept = "kept" if recipes.is_one_region(pictures) else "rejected: not one region"
    fig = plots.sheet({f"mask {index}": list(pictures.values())}, list(pictures))
    plots.show(fig, None, "mask_recipe", f"{recipe}: {kept}")


def recipe_sliders(size: int, seed: int):
    """Sliders for the recipe, which draw a mask anew; nothing where nobody could move them."""
    if not is_attended():
        return
    from ipywidgets import FloatSlider, IntSlider, interact  # slow import, needed only here

    start, ranges = recipes.Recipe(), {"index": IntSlider(0, 0, 99)}
    for name, (low, high) in SLIDERS.items():
        kind, step = (IntSlider, 1) if name == "grid" else (FloatSlider, 0.01)
        options = dict(min=low, max=high, step=step, continuous_update=False)
        ranges[name] = kind(value=getattr(start, name), **options)

    def draw(index, **values):
        show_steps(size, seed, index, replace(start, **values))

    interact(draw, **ranges)


def deformed(size: int, seed: int, index: int, recipe):
    """The blurred circle of a mask, the same deformed (both (size, size) floats), and the shifts of
    the control points (2, grid, grid) in pixels."""
    rng = np.random.default_rng([seed, index])
    start = recipes.blurred(recipes.circle(rng, size, recipe), recipe.blur * size)
    shifts = recipes.drawn_displacement(rng, size, recipe)
    return start, recipes.elastic(start, shifts), shifts


def elastic(start, bent, shifts):
    """Outlines of a picture before and after elastic deformation, and the control points."""
    fig, axis = plt.subplots(figsize=(4.2, 3.6))
    marks, (_, down, across) = [], shifts.shape
    for label, picture, line in (("before", start, ("0.6", "--")), ("after", bent, ("black", "-"))):
        axis.contour(picture, [0.5], colors=[line[0]], linestyles=[line[1]])
        marks.append(Line2D([], [], color=line[0], ls=line[1], label=f"outline {label}"))
    size = len(start)
    at = np.meshgrid(np.linspace(0, size - 1, across), np.linspace(0, size - 1, down))
    arrows = dict(angles="xy", scale_units="xy", scale=1, color="0.45", width=0.005)
    axis.quiver(*at, shifts[1], shifts[0], **arrows)
    axis.plot(*(x.ravel() for x in at), ls="", marker=".", color="0.45")
    limits = (-0.15 * size, 1.15 * size)
    axis.set(xlim=limits, ylim=limits[::-1], aspect="equal", xlabel="pixel", ylabel="pixel")
    marks.append(Line2D([], [], color="0.45", marker=".", label="control point and its shift"))
    style.legend_below(fig, marks)
    return fig


def zero_convolution():
    """Diagram of a ControlNet: locked UNet, trainable copy, and the zero convolutions between."""
    colour = style.METHODS["controlnet"][0]
    boxes = {
        "noisy": (0.1, 2.0, "noisy latents\n$z_t$, time $t$,\nprompt"),
        "encoder": (1.3, 2.0, "encoder\n(locked)"),
        "middle": (2.45, 2.0, "middle\n(locked)"),
        "decoder": (3.6, 2.0, "decoder\n(locked)"),
        "out": (4.7, 2.0, "prediction\n$v$ or $\\epsilon$"),
        "mask": (0.1, 0.4, "mask, embedded\nby convolutions"),
        "copy": (1.3, 0.4, "copy of the\nencoder"),
        "copied": (2.45, 0.4, "copy of the\nmiddle"),
        "zero": (3.6, 0.4, "zero convolutions\n$y = W x + b$\nstart: $W = 0$, $b = 0$"),
    }
    arrows = "noisy encoder, encoder middle, middle decoder, decoder out, mask copy, noisy copy, "
    arrows += "copy copied, copied zero, zero decoder"
    pairs = [arrow.split() for arrow in arrows.split(", ")]
    fills = dict.fromkeys(["mask", "copy", "copied", "zero"], "#d9e8f3")
    fig = plots.diagram(boxes, pairs, 2.8, {"xlim": (-0.5, 5.2), "ylim": (-0.35, 2.55)}, fills)
    for y, shade, name in ((2.45, "0.35", "grey: fixed"), (0.4, colour, "blue: trained")):
        fig.axes[0].text(4.7, y, name, ha="center", va="center", color=shade)
    return fig


def denoising_strip(times, pictures: dict, masks: dict):
    """Pictures (n, S, S, 3) of each DDIM step, a row per label; `SHOWN` of the n steps.

    `masks` {label: mask (S, S)}: whose outline is drawn on the pictures of the row.
    """
    chosen = np.unique(np.linspace(0, len(times) - 1, SHOWN).round().astype(int))
    rows = {}
    for label, found in pictures.items():
        drawn = list(found[chosen])
        mask = masks.get(label)
        rows[label] = drawn if mask is None else plots.all_outlined(drawn, [mask] * len(drawn))
    titles = [f"step {i + 1}: t={times[i]}" for i in chosen]
    return plots.sheet(rows, titles, made=rows)
