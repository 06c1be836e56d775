"""Figures that several notebooks draw: contact sheets, outlines, training curves."""

import io
import textwrap

import cv2
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from lesionlib.engine.files import atomic_write, resolve
from lesionlib.engine.stages import STAGES
from lesionlib.evaluation import claims
from lesionlib.evaluation.paper import display_name
from lesionlib.report import style

PANEL, GAP, LABEL = 1.15, 0.06, 0.95  # of sheets, inches: widest picture, gap, widest row label
TEXT = 9  # points: labels and titles of sheets
OUTLINE = (0, 190, 255)  # RGB: a blue that neither skin nor lesions have
ARROWS = (
    "data G, data S, G masks, G controlnet, G pix2pixhd, masks controlnet, masks pix2pixhd, "
    "controlnet pairs, pix2pixhd pairs, pairs networks, S networks, networks tables, pairs tables"
)  # in Figure 2, between the boxes of `workflow`


def contour(picture: np.ndarray, mask: np.ndarray, colour, thickness: int) -> np.ndarray:
    """Draw the outline of a mask (H, W) on a picture (h, w, 3) of any size."""
    mask = cv2.resize(mask, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, colour, thickness)


def outlined(image: np.ndarray, mask: np.ndarray, scale: int = 3) -> np.ndarray:
    """The image (S, S, 3), enlarged `scale` times, with the outline of its mask (S, S)."""
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return contour(large, mask, OUTLINE, 1)


def all_outlined(images, masks) -> list[np.ndarray]:
    """`outlined` for each of several images."""
    return [outlined(image, mask) for image, mask in zip(images, masks, strict=True)]


def placeholder(mask=None, side: int = 200) -> np.ndarray:
    """A grey panel (side, side, 3) in place of a real image, with its lesion's outline if known."""
    panel = np.full((side, side, 3), 236, np.uint8)
    return panel if mask is None else contour(panel, mask, (90, 90, 90), 2)


def sheet(rows: dict, titles=None, made=(), masks=None):
    """A grid of pictures: a labelled row per entry of `rows`, a column per picture in it.

    Pictures are (S, S) grey or (S, S, 3) RGB; `titles` are those of the columns. Rows of RGB
    pictures count as real images unless their labels are in `made`. If there are any, the figure's
    attribute `public` is the same grid with placeholders instead; `masks` {label: masks} gives
    their outlines.
    """
    fig = _grid(rows, titles or [])
    fig.alt_text = f"Rows of pictures: {', '.join(rows)}."
    real = [k for k, pictures in rows.items() if k not in made and np.ndim(pictures[0]) == 3]
    if real:
        public = {}
        for label, pictures in rows.items():
            if label in real:
                outlines = (masks or {}).get(label, [None] * len(pictures))
                label, pictures = (
                    f"{label} (real: not shown)",
                    [placeholder(mask) for mask in outlines],
                )
            public[label] = pictures
        fig.public = _grid(public, titles or [])
    return fig


def _grid(rows: dict, titles):
    labels = [style.wrapped(label, LABEL, TEXT) for label in rows]
    left = 0.15 + max(style.width(line, TEXT) for text in labels for line in text.split("\n"))
    columns, line = max(map(len, rows.values())), 1.25 * TEXT / 72
    panel = min(PANEL, (style.PAGE - left) / columns - GAP)
    heads = [style.wrapped(title, panel, TEXT) for title in titles]
    top = GAP + line * max([head.count("\n") + 1 for head in heads], default=0)
    heights = [max(panel, line * (text.count("\n") + 1)) + GAP for text in labels]
    size = np.array([left + columns * (panel + GAP), top + sum(heights)])
    # "none" would be the style's layout again once the figure has been saved.
    engine = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
    fig = plt.figure(figsize=size, layout=engine)
    for i, (text, pictures) in enumerate(zip(labels, rows.values(), strict=True)):
        centre = size[1] - top - sum(heights[:i]) - (heights[i] - GAP) / 2
        place = (left - 0.08) / size[0], centre / size[1]
        fig.text(*place, text, ha="right", va="center", fontsize=TEXT)
        for j, picture in enumerate(pictures):
            corner = np.array([left + j * (panel + GAP), centre - panel / 2])
            axis = fig.add_axes([*corner / size, *panel / size])
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.ndim == 2 else None)
            axis.axis("off")
            if not i and j < len(heads):
                axis.set_title(heads[j], fontsize=TEXT, pad=3)
    return fig


def curve(log: list[dict], columns, ylabel: str, axis=None):
    """Plot columns of a training log against the step, in `axis` or in a figure of its own."""
    if axis is None:
        _, axis = plt.subplots(figsize=(5.5, 2.6))
    steps = [int(row["step"]) for row in log]
    for name in columns:
        values = [float(row[name]) for row in log]
        axis.plot(steps, values, label=style.label(name), marker="." if len(log) < 20 else "")
    axis.set(xlabel="optimiser step", ylabel=ylabel)
    axis.locator_params(axis="x", nbins=4)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    if len(columns) > 1:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return axis.figure


def _write(fig, path, **options):
    with atomic_write(path) as temporary:
        fig.savefig(temporary, **options)


def show(fig, run, name: str, note: str = ""):
    """Display a figure with its caption `note` below it; save it if `run` is given.

    The caption can be read alone: what is shown, n, seeds, and the kind of interval. A figure wider
    than a page is narrowed to it. Writes figures/NAME.png, NAME.svg too if the plot contains no
    pictures, and figures/public/NAME.png if the version without real images differs. The displayed
    output carries the name, by which `publish` finds the public version, and an alternative text.
    """
    fig.set_figwidth(min(fig.get_figwidth(), style.PAGE))
    versions = {"": fig, "public/": getattr(fig, "public", None)}
    if run:
        for folder, version in versions.items():
            if version is not None:
                _write(version, resolve(run) / "figures" / f"{folder}{name}.png")
        if not any(axis.images for axis in fig.axes):
            with plt.rc_context({"svg.hashsalt": name}):
                path = resolve(run) / "figures" / f"{name}.svg"
                _write(fig, path, metadata={"Date": None})
    picture = io.BytesIO()
    fig.savefig(picture, format="png", dpi=150)
    for version in versions.values():
        if version is not None:
            plt.close(version)
    alt_text = f"{getattr(fig, 'alt_text', f'Plot: {name}.'.replace('_', ' '))} {note}".strip()
    display(Image(picture.getvalue(), metadata={"figure": name, "alt": alt_text}))
    if note:
        print(note)


def table(frame, precision: int = 3):
    """Display a table without its index; cells are shown as text, never as markup."""
    whole = frame.convert_dtypes()  # pandas turns counts with missing values into floats
    cells = whole.style.format(precision=precision, na_rep="", escape="html")
    if "verdict" in whole:
        cells = cells.map(lambda name: f"color: {claims.VERDICTS[name]}", subset=["verdict"])
    display(cells.format_index(escape="html", axis="columns").hide(axis="index"))


def strongest_texture(images: np.ndarray) -> list[tuple]:
    """For each image (S, S, 3) the square of half its side with the most detail, as two slices.

    Detail is the mean absolute Laplacian of the luminance.
    """
    half, windows = images.shape[1] // 2, []
    for image in images:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        detail = np.abs(cv2.Laplacian(grey, cv2.CV_64F))
        inside = cv2.boxFilter(detail, -1, (half, half), anchor=(0, 0))[:-half, :-half]
        top, left = np.unravel_index(inside.argmax(), inside.shape)
        windows.append((slice(top, top + half), slice(left, left + half)))
    return windows


def crops(images: np.ndarray, windows) -> list[np.ndarray]:
    """The window of each image (S, S, 3), enlarged to 256 x 256 pixels."""
    parts = [np.ascontiguousarray(x[w]) for x, w in zip(images, windows, strict=True)]
    return [cv2.resize(part, (256, 256), interpolation=cv2.INTER_CUBIC) for part in parts]


def workflow(counts: dict, synthetic: int, networks, methods, external_generators=()):
    """Figure 2: the path of the data, with this run's numbers of images; notebooks in brackets.

    `counts`: images in each part of the split; `synthetic`: number of synthetic masks; `networks`
    and `methods` of the run; `external_generators`: names of further synthetic sets.
    """
    data, masks, control, gan, quality, segmentation, _ = (stage[:2] for stage in STAGES)
    parts = "\n".join(f"{part} {counts[part]}" for part in ("S-train", "S-val", "S-test"))
    external = [f"and those\nof {name}" for name in external_generators]
    tables = f"Table 1:\nimage quality\n({quality})\n\nTable 2:\nDice on S-test\n({segmentation})"
    named = ",\n".join(textwrap.fill(display_name(network), 12) for network in networks)
    boxes = {  # name: (x, y, text)
        "data": (0.05, 2, f"images,\nmasks,\ndiagnoses,\nattributes\n({data})"),
        "G": (1, 2.7, f"G: {counts['G']} pairs\nwith prompts"),
        "S": (1, 0.5, f"S\n{parts}"),
        "masks": (1, 1.65, f"{synthetic} masks,\nvisual prompts\n({masks})"),
        "controlnet": (2.05, 2.7, f"ControlNet on a\nlocked base, DDIM\n({control})"),
        "pix2pixhd": (2.05, 1.65, f"Pix2PixHD\n({gan})"),
        "pairs": (3.1, 2.2, "\n".join(["synthetic\npairs", *external])),
        "networks": (3.1, 0.9, f"{named}\n({segmentation})"),
        "tables": (4.15, 1.6, tables),
    }
    limits = {"xlim": (-0.4, 4.6), "ylim": (-0.1, 3.2)}
    kinds = ("controlnet", "pix2pixhd")
    absent = {kind for kind in kinds if not any(name.startswith(kind) for name in methods)}
    boxes = {name: box for name, box in boxes.items() if name not in absent}
    arrows = [ends for ends in map(str.split, ARROWS.split(", ")) if {*ends} <= {*boxes}]
    return diagram(boxes, arrows, 3.6, limits)


def diagram(boxes: dict, arrows, height: float, limits: dict, fills=None):
    """A figure of boxes with text {name: (x, y, text)} that arrows (from, to) join.

    As wide as a page; `height` in inches; `limits` of the axis; `fills` {name: colour}.
    """
    fig, axis = plt.subplots(figsize=(style.PAGE, height))
    frame = {"boxstyle": "round,pad=0.5", "ec": "0.35"}
    centred, drawn = {"ha": "center", "va": "center", "fontsize": 8.5}, {}
    for name, (x, y, text) in boxes.items():
        fill = {"fc": (fills or {}).get(name, "0.95")}
        drawn[name] = axis.text(x, y, text, **centred, bbox=frame | fill)
    line = {"arrowstyle": "-|>", "color": "0.4", "shrinkA": 2, "shrinkB": 8}
    for start, end in ((drawn[one], drawn[other]) for one, other in arrows):
        axis.annotate(
            "",
            xy=end.get_position(),
            xytext=start.get_position(),
            arrowprops=line | {"patchA": start, "patchB": end},
        )
    axis.set(**limits)
    axis.axis("off")
    return fig
