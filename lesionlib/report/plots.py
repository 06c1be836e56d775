"""Pictures that several notebooks draw: contact sheets, outlines, training curves."""

import io
import textwrap

import cv2
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

from lesionlib.engine.files import atomic_write, resolve
from lesionlib.report.notebooks import STAGES

plt.style.use("seaborn-v0_8-colorblind")  # colours that everybody can tell apart
OUTLINE = (0, 190, 255)  # a blue that neither skin nor lesion has


def outlined(image: np.ndarray, mask: np.ndarray, scale: int = 3) -> np.ndarray:
    """The image (S, S, 3), enlarged, with the outline of its mask (S, S) drawn on it."""
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    shape = cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(large), contours, -1, OUTLINE, 1)


def all_outlined(images, masks) -> list[np.ndarray]:
    """`outlined` for each of several images."""
    return [outlined(image, mask) for image, mask in zip(images, masks, strict=True)]


def hidden(picture: np.ndarray, mask=None, side: int = 200) -> np.ndarray:
    """What stands for a real picture where it must not be shown: its lesion's outline, if known."""
    panel = np.full((side, side, 3), 236, np.uint8)
    if mask is None:
        return panel
    shape = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(panel, contours, -1, (90, 90, 90), 2)


def sheet(rows: dict, titles=None, width: float = 1.25, wrap: int = 18, made=(), masks=None):
    """A grid of pictures: one labelled row per entry, one column per picture in it.

    Rows of coloured pictures count as real images unless their labels are in `made`. Where there
    are any, the figure's attribute `public` is the same grid with `hidden` in their place;
    `masks` maps labels to the masks whose outlines are drawn there.
    """
    fig = _grid(rows, titles, width, wrap)
    fig.says = f"Rows of pictures: {', '.join(rows)}."
    real = [k for k, some in rows.items() if k not in made and np.ndim(some[0]) == 3]
    if real:
        public = {}
        for label, pictures in rows.items():
            some = (masks or {}).get(label, [None] * len(pictures))
            panels = [hidden(p, m) for p, m in zip(pictures, some, strict=True)]
            is_real = label in real
            public[f"{label} (real: not shown)" if is_real else label] = (
                panels if is_real else pictures
            )
        fig.public = _grid(public, titles, width, wrap)
    return fig


def _grid(rows: dict, titles, width: float, wrap: int):
    columns = max(len(pictures) for pictures in rows.values())
    fig, axes = plt.subplots(
        len(rows),
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(width * columns + 1.0, width * len(rows) + 0.4),
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for line, (label, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(
            "\n".join(textwrap.wrap(label, 14)), rotation=0, ha="right", va="center", fontsize=8
        )
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.ndim == 2 else None)
    for axis, title in zip(axes[0], titles or [], strict=False):
        axis.set_title("\n".join(textwrap.wrap(title, wrap)), fontsize=7)
    return fig


def curve(log: list[dict], columns, ylabel: str, axis=None):
    """Columns of a training log against the step, in `axis` or in a figure of its own."""
    if axis is None:
        _, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
    steps = [int(row["step"]) for row in log]
    for name in columns:
        values = [float(row[name]) for row in log]
        axis.plot(steps, values, label=name, marker="." if len(log) < 20 else "")
    axis.set(xlabel="optimiser step", ylabel=ylabel)
    if len(columns) > 1:
        axis.legend(frameon=False)
    return axis.figure


def _write(fig, path, **options):
    with atomic_write(path) as temporary:
        fig.savefig(temporary, **options)


def show(fig, run, name: str, note: str = ""):
    """Display a figure, its note (n, seeds, intervals) below; with a `run`, also write its files.

    figures/NAME.png, and NAME.svg of a plot without pictures; figures/public/NAME.png is the
    version without real images, if that is another one. The displayed output carries the name, so
    that `publish` can put the public version in its place, and a text for those who cannot see it.
    """
    versions = {"": fig, "public/": getattr(fig, "public", None)}
    if run:
        for place, version in versions.items():
            if version is not None:
                _write(version, resolve(run) / "figures" / f"{place}{name}.png", dpi=150)
        if not any(axis.images for axis in fig.axes):
            with plt.rc_context({"svg.hashsalt": name}):
                path = resolve(run) / "figures" / f"{name}.svg"
                _write(fig, path, metadata={"Date": None})
    picture = io.BytesIO()
    fig.savefig(picture, format="png", dpi=100)
    for version in versions.values():
        if version is not None:
            plt.close(version)
    says = f"{getattr(fig, 'says', f'Plot: {name}.'.replace('_', ' '))} {note}".strip()
    display(Image(picture.getvalue(), metadata={"figure": name, "alt": says}))
    if note:
        print(note)


def table(frame, precision: int = 3):
    """Display a table without its index; what stands in its cells is text, never markup."""
    whole = frame.convert_dtypes()  # counts with gaps are floats to pandas
    style = whole.style.format(precision=precision, na_rep="", escape="html")
    display(style.format_index(escape="html", axis="columns").hide(axis="index"))


def strongest_texture(images: np.ndarray) -> list[tuple]:
    """For each image (S, S, 3) the square of half its side that holds most detail, as slices.

    Detail is the mean absolute Laplacian of the brightness.
    """
    half, found = images.shape[1] // 2, []
    for image in images:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        detail = np.abs(cv2.Laplacian(grey, cv2.CV_64F))
        inside = cv2.boxFilter(detail, -1, (half, half), anchor=(0, 0))[:-half, :-half]
        top, left = np.unravel_index(inside.argmax(), inside.shape)
        found.append((slice(top, top + half), slice(left, left + half)))
    return found


def crops(images: np.ndarray, windows) -> list[np.ndarray]:
    """The window of each image (S, S, 3), enlarged to 256 pixels."""
    parts = [np.ascontiguousarray(x[w]) for x, w in zip(images, windows, strict=True)]
    return [cv2.resize(part, (256, 256), interpolation=cv2.INTER_CUBIC) for part in parts]


def workflow(counts: dict, synthetic: int, others=()):
    """Figure 2: what goes where, with this run's numbers of images; in brackets, the notebook."""
    data, masks, control, gan, quality, segmentation, _ = (stage[:2] for stage in STAGES)
    segment = f"S-train {counts['S-train']}, S-val {counts['S-val']}, S-test {counts['S-test']}"
    boxes = {  # name: (x, y, text)
        "data": (0, 2, f"images, masks,\ndiagnoses, attributes\n({data})"),
        "G": (1, 2.6, f"G: {counts['G']} pairs\nwith prompts"),
        "S": (1, 0.4, "S\n" + segment.replace(", ", "\n")),
        "masks": (1, 1.6, f"{synthetic} masks\n(visual prompts, {masks})"),
        "controlnet": (2, 2.6, f"ControlNet on a\nlocked base, DDIM ({control})"),
        "pix2pixhd": (2, 1.6, f"Pix2PixHD ({gan})"),
        "pairs": (3, 2.1, "\n".join(["synthetic pairs", *(f"and those of {o}" for o in others)])),
        "networks": (3, 0.8, f"U-Net, DCSAU-Net ({segmentation})"),
        "tables": (
            4,
            1.4,
            f"Table 1: image quality ({quality})\nTable 2: Dice on S-test ({segmentation})",
        ),
    }
    arrows = [
        ("data", "G"),
        ("data", "S"),
        ("G", "masks"),
        ("G", "controlnet"),
        ("G", "pix2pixhd"),
        ("masks", "controlnet"),
        ("masks", "pix2pixhd"),
        ("controlnet", "pairs"),
        ("pix2pixhd", "pairs"),
        ("pairs", "networks"),
        ("S", "networks"),
        ("networks", "tables"),
        ("pairs", "tables"),
    ]
    fig, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    drawn = {
        name: axis.text(
            2.6 * x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.5", "fc": "#e8f0f8", "ec": "#33608c"},
        )
        for name, (x, y, text) in boxes.items()
    }
    for start, end in arrows:
        axis.annotate(
            "",
            xy=(2.6 * boxes[end][0], boxes[end][1]),
            xycoords="data",
            xytext=(2.6 * boxes[start][0], boxes[start][1]),
            textcoords="data",
            arrowprops={
                "arrowstyle": "-|>",
                "color": "0.4",
                "patchB": drawn[end],
                "patchA": drawn[start],
                "shrinkA": 2,
                "shrinkB": 12,
            },
        )
    axis.set(xlim=(-1.3, 11.8), ylim=(-0.2, 3.2))
    axis.axis("off")
    return fig
