"""The widgets of notebooks/playground.ipynb: a canvas to paint on, conditions, and pictures.

They work in JupyterLab and in VS Code, without a network: controls are those of ipywidgets, the
canvas is canvas.js, loaded by anywidget.
"""

import html
import os
import time
from contextlib import contextmanager
from pathlib import Path

import anywidget
import cv2
import ipywidgets as widgets
import numpy as np
import traitlets
from ipywidgets.widgets.trait_types import CByteMemoryView

from lesionlib.data.prompts import ATTRIBUTES, WORDS
from lesionlib.engine.errors import InputError
from lesionlib.engine.progress import quieten
from lesionlib.report import plots
from lesionlib.workflow.playground import Lesion, Studio, Wish

HERE = Path(__file__).parent
SIDE = 192  # of pictures on the screen, in CSS pixels
STATE = 128  # of pictures of DDIM steps
COLUMN = {"width": f"{SIDE + 20}px"}
DIFFUSION = ("controlnet", "base")  # generators whose sampling has steps
FOUND = (255, 225, 0)  # RGB: what the reference segmenter finds; masks are plots.OUTLINE
TITLES = {
    "controlnet": "ControlNet",
    "pix2pixhd": "Pix2PixHD",
    "pix2pixhd_plus": "Pix2PixHD+",
    "base": "Small base",
}
NO_RUN = """<b>There is no finished run</b> (<code>./run_all.sh</code> makes one): this is the small
base that comes with the repository. It has no ControlNet, so that your mask reaches it <b>only as
words</b>: its size and position are added to the prompt. There is neither Pix2PixHD nor a reference
segmenter, hence no outline and no fidelity."""


class Canvas(anywidget.AnyWidget):
    """A canvas on which a mask of `size` x `size` pixels is painted with the mouse."""

    _esm, _css = HERE / "canvas.js", HERE / "canvas.css"
    size = traitlets.Int().tag(sync=True)
    mask = CByteMemoryView().tag(sync=True)

    def __init__(self, size: int):
        super().__init__(size=size, mask=bytes(size * size))

    @property
    def array(self) -> np.ndarray:
        """The mask (S, S), uint8 of 0 and 1."""
        return np.frombuffer(self.mask, np.uint8).reshape(self.size, self.size).copy()

    @array.setter
    def array(self, mask: np.ndarray):
        self.mask = mask.tobytes()


def png(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3), RGB, as a PNG."""
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def picture(side: int = SIDE) -> widgets.Image:
    """A picture, at first a grey one."""
    return widgets.Image(value=png(plots.placeholder()), width=side, height=side)


def enlarged(image: np.ndarray, *outlines) -> np.ndarray:
    """An image (S, S, 3) at about SIDE, with outlines: pairs of a mask (s, s) and a colour."""
    scale = max(1, round(SIDE / len(image)))
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for mask, colour in outlines:
        large = plots.contour(large, mask, colour, 1)
    return large


class Panel:
    """The picture of one generator, its fidelity, and the button that keeps the pair."""

    def __init__(self, name: str, keep):
        self.name, self.keep, self.lesion = name, keep, None
        self.picture, self.caption = picture(), widgets.HTML()
        self.button = widgets.Button(description="Keep this pair", disabled=True)
        self.button.on_click(self._clicked)
        title = widgets.HTML(f"<b>{TITLES[name]}</b>")
        parts = [title, self.picture, self.caption, self.button]
        self.box = widgets.VBox(parts, layout=COLUMN)

    def show(self, lesion: Lesion, outlines: bool):
        """Show a lesion, which may be a new one."""
        shapes = [(lesion.wish.mask, plots.OUTLINE), (lesion.found, FOUND)] if outlines else []
        shapes = [pair for pair in shapes if pair[0] is not None]
        self.picture.value = png(enlarged(lesion.image, *shapes))
        if lesion is self.lesion:
            return
        self.lesion, self.button.disabled = lesion, False
        said = [] if lesion.fidelity is None else [f"fidelity <b>{lesion.fidelity:.2f}</b>"]
        said += ["reads no prompt"] * (lesion.latents is None)
        self.caption.value = ", ".join(said)

    def _clicked(self, _):
        if not self.button.disabled:  # the second of two quick clicks finds it disabled
            self.button.disabled = True
            self.keep(self)


class Board:
    """The playground: what is painted and chosen, and the lesions that come of it.

    `folder`: of the pairs that are kept.
    """

    def __init__(self, studio: Studio, folder):
        self.studio, self.folder, self.done, self.masks = studio, folder, None, 0
        self.canvas, self.panels = (
            Canvas(studio.size),
            [Panel(name, self.keep) for name in studio.generators],
        )
        self._conditions()
        self._steps()
        self.button = widgets.Button(description="Paint lesions", button_style="primary")
        self.button.on_click(self.paint)
        self.status = widgets.HTML(
            "Paint a mask, then press <i>Paint lesions</i>.", layout={"width": "300px"}
        )
        self.outlines = widgets.Checkbox(True, description="outlines", indent=False)
        self.outlines.observe(self._redraw, "value")
        self.canvas.observe(self._word, "mask")
        self._word()

    def _conditions(self):
        """The widgets of the conditions."""
        sampling, wide = self.studio.settings.sampling, {"layout": {"width": "300px"}}
        wide |= {"style": {"description_width": "105px"}}
        names = [*self.studio.diagnoses, "skin lesion"]
        options = [*zip(names, names, strict=True), ("no prompt", "")]
        self.diagnosis = widgets.Dropdown(options=options, description="diagnosis", **wide)
        self.attributes = {
            name: widgets.Checkbox(description=WORDS[name], indent=False, layout={"width": "145px"})
            for name in ATTRIBUTES
        }
        scale = dict(min=0.0, max=8.0, step=0.5, continuous_update=False, **wide)
        value = sampling.prompt_guidance
        self.guidance = widgets.FloatSlider(value, description="text guidance", **scale)
        value = sampling.control_guidance
        self.control = widgets.FloatSlider(value, description="mask guidance", **scale)
        self.control.disabled = "controlnet" not in self.studio.generators
        self.seed = widgets.BoundedIntText(0, 0, 2**31 - 1, description="seed", **wide)
        self.wording = widgets.HTML(layout={"width": "300px"})
        self.automatic = widgets.Button(description="Automatic mask")
        self.automatic.on_click(self._automatic)
        for one in (self.diagnosis, *self.attributes.values()):
            one.observe(self._word, "value")

    def _steps(self):
        """The widgets that walk through the DDIM steps."""
        steps = self.studio.settings.sampling.ddim_steps
        options = dict(min=1, max=steps, value=steps, disabled=True)
        self.slider = widgets.IntSlider(**options, layout={"width": f"{SIDE}px"})
        self.slider.observe(self._walk, "value")
        self.states = [picture(STATE) for _ in range(2)]

    @property
    def box(self) -> widgets.Widget:
        """All widgets."""
        ticks = widgets.GridBox(
            [*self.attributes.values()], layout={"grid_template_columns": "150px 150px"}
        )
        conditions = [self.diagnosis, ticks, self.guidance, self.control, self.seed, self.wording]
        columns = [[self.canvas, self.automatic], [*conditions, self.button, self.status]]
        if self.panels[0].name in DIFFUSION:
            heads = [widgets.HTML(text) for text in ("<b>DDIM step</b>", "starts from", "expects")]
            columns.append([heads[0], self.slider, heads[1], self.states[0]])
            columns[-1] += [heads[2], self.states[1]]
        apart = {"margin": "0 24px 0 0"}
        above = widgets.HBox([widgets.VBox(column, layout=apart) for column in columns])
        below = widgets.HBox([panel.box for panel in self.panels])
        return widgets.VBox([self._heading(), above, below, self.outlines])

    def _heading(self) -> widgets.HTML:
        studio = self.studio
        if studio.folder is None:
            return widgets.HTML(NO_RUN)
        missing = [TITLES[name] for name in TITLES if name not in (*studio.generators, "base")]
        said = f"Run <b>{html.escape(studio.folder.name)}</b>, {studio.size} px."
        if missing:
            said += f" It has no {' and no '.join(missing)}."
        return widgets.HTML(said)

    @contextmanager
    def _busy(self):
        """Say what goes wrong within this block; the button is disabled meanwhile."""
        self.button.disabled = True
        try:
            yield
        except Exception as error:
            self.status.value = f"<b style='color: #b00020'>{html.escape(str(error))}</b>"
            if not isinstance(error, InputError):
                raise
        finally:
            self.button.disabled = False

    @property
    def wish(self) -> Wish:
        """What is painted and chosen."""
        mask, labels = self.canvas.array, {"diagnosis": self.diagnosis.value}
        labels |= {name: int(box.value) for name, box in self.attributes.items()}
        prompt = self.studio.prompt(labels, mask) if self.diagnosis.value else ""
        return Wish(mask, prompt, self.guidance.value, self.control.value, self.seed.value)

    def paint(self, _=None):
        """Paint what is wished, unless it is what the pictures show (a double click)."""
        with self._busy():
            wish, start = self.wish, time.monotonic()
            if wish.key == self.done:
                return
            self.status.value = "Painting …"
            lesions = self.studio.paint(wish)
            for panel, lesion in zip(self.panels, lesions, strict=True):
                panel.show(lesion, self.outlines.value)
            self.done = wish.key
            self._walk()
            self.status.value = f"Painted in {time.monotonic() - start:.1f} s."

    def keep(self, panel: Panel):
        """Keep the pair that a panel shows."""
        with self._busy():
            path = self.studio.keep(panel.lesion, self.folder)
            self.status.value = f"Kept: {html.escape(str(path))}"

    def _automatic(self, _):
        self.canvas.array = self.studio.automatic(self.masks)
        self.masks += 1

    def _word(self, _=None):
        prompt = html.escape(self.wish.prompt) or "empty prompt"
        self.wording.value = f"<i>{prompt}</i>"

    def _redraw(self, _):
        for panel in self.panels:
            if panel.lesion:
                panel.show(panel.lesion, self.outlines.value)

    def _walk(self, _=None):
        lesion = self.panels[0].lesion
        if lesion and lesion.latents is not None:
            self.slider.disabled, self.slider.max = False, len(lesion.latents)
            images = self.studio.step(lesion, self.slider.value)
            for shown, image in zip(self.states, images, strict=True):
                shown.value = png(enlarged(image))


def show(run: str = "", folder: str = "") -> widgets.Widget:
    """The playground of a finished run (see `Studio`); pairs are kept in `folder`."""
    os.environ.setdefault("LESIONLIB_QUIET", "1")  # no bars between the widgets
    quieten()
    studio = Studio(run)
    name = studio.folder.name if studio.folder else "small"
    return Board(studio, folder or f"runs/kept/{name}").box
