"""What goes with pairs and models that leave a run: its settings, terms, and cards for the hub."""

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from lesionlib.data import layouts
from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import atomic_write, read_json, resolve, write_csv
from lesionlib.engine.provenance import code_version
from lesionlib.generators import external_generators

GROUPS = ("data", "design", "masks", "base", "training", "controlnet", "sampling")
PROCEDURAL = "MIT, as the code; none is a photograph"
UNKNOWN = "the images' own terms, which this program does not know: ask who gave them"
LIMITS = """Not for clinical use. The images show what a generator has learnt from one data set of
limited size: rare diagnoses, skin tones and instruments are as rare, or wrong. A prompt is a wish:
`tables/prompt_recognition.csv` of the run measures how far it is granted. The fidelity is judged by
a network, which errs."""


def finished(run) -> config.Settings:
    """The settings of a finished run; InputError if it is not finished, or of an older version."""
    folder = resolve(run)
    facts = read_json(folder / "provenance.json")
    if facts is None:
        remedy = "finish it first (./run_all.sh), or name another one"
        raise InputError(folder, "there is no finished run", remedy)
    flat = facts["settings"]
    known = {key: value for key, value in flat.items() if key in config.KEYS}
    settings = config.load(flat["preset"], known, groups=GROUPS)
    return settings.model_copy(update={"run": str(folder)})


def is_given(settings: config.Settings, generator: str = "controlnet") -> bool:
    """Whether somebody else has trained this generator."""
    return generator == "controlnet" and bool(settings.controlnet.model)


def training_data(settings: config.Settings, part, generator: str = "controlnet") -> str:
    """The paragraph on a generator's training images: `part`, the run's G; source and licence."""
    source, number = settings.data.source, len(part.images)
    layout = layouts.LAYOUTS.get("isic2018" if source == "isic" else source)
    if is_given(settings, generator):
        what, licence = (
            f"those of {_public(settings.controlnet.model)}, not trained in this run",
            UNKNOWN,
        )
    elif layout:
        what, licence = f"{number} images, {layout.title} ({layout.citation})", layout.licence
    elif source == "phantom":
        what, licence = f"{number} procedural images", PROCEDURAL
    else:
        what, licence = f"{number} images of the user's own", UNKNOWN
    return (
        f"**Training data.** {what}. Licence: {licence}. Whether it extends to weights and to "
        "generated images is for the owner of the images to say."
    )


def write_trained_on(folder, settings: config.Settings, part, generator: str = "controlnet"):
    """Write trained_on.csv, ids of the training images, by which the study detects leakage.

    Only where the names are public, and those of pictures that are the same everywhere.
    """
    public = settings.data.source in ("isic", *layouts.LAYOUTS)
    if public and not is_given(settings, generator):
        write_csv(folder / external_generators.TRAINED_ON, part.table[["id"]])


def _public(model: str) -> str:
    """A hub id, or the last part of a path: the rest says where somebody keeps files."""
    return Path(model).name if resolve(model).exists() else model


def base_name(settings: config.Settings) -> str:
    """What the base is, in words."""
    own = settings.base
    name = {"": "a small base", "small": "the small base of this repository"}
    start = name.get(own.model, _public(own.model))
    if not own.is_trained:
        return start
    return f"{start}, trained {'further ' if own.model else ''}on the same images"


def _write(path, front: dict, text: str):
    """Write a card in the hub's format: YAML between lines of dashes, then Markdown."""
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(["---", *lines, "---", text]))


def _measured(table: pd.DataFrame, candidates: int, least: float) -> str:
    fidelity = table["mask_fidelity"]
    low, median, high = fidelity.quantile([0.1, 0.5, 0.9])
    kept = f"; {candidates} were generated, these reach {least:g}" if least else ""
    return (
        f"Fidelity (Dice of the run's reference segmenter with the mask): mean "
        f"{fidelity.mean():.3f}, median {median:.3f}, a tenth below {low:.3f}, a tenth above "
        f"{high:.3f}{kept}. Near-copies of a training image: {table['near_copy'].sum()} of "
        f"{len(table)} (column `near_copy`)."
    )


def write_data_card(maker, table: pd.DataFrame, candidates: int, warning: str = ""):
    """Write README.md beside the pairs of a `generate.Maker`, chosen from so many candidates."""
    order, settings = maker.order, maker.settings
    what = {k: v for k, v in asdict(order).items() if k not in ("run", "out", "masks", "processes")}
    base = f" on {base_name(settings)}" if order.generator == "controlnet" else ""
    masks = "given" if order.masks else f"drawn ({order.mask_mode or settings.design.mask_mode})"
    text = f"""# {len(table)} synthetic dermoscopic pairs

**What.** `images/` and `masks/` (0 and 255), a pair for each name,
{maker.study.images.shape[1]} px; `manifest.csv` has a row per pair: prompt, seed, settings, model,
fidelity, digests of both files.
Every image is generated; none is a photograph.

**How.** {order.generator}{base}, weights `{table["model"].iloc[0]}`, by lesionlib {code_version()};
masks {masks}. The order: `{json.dumps(what)}`.

**Measured.** {_measured(table, candidates, order.min_fidelity)}

**Limits.** {LIMITS} {warning}

{training_data(settings, maker.study.part("G"), order.generator)}

**Use.** Any loader of pairs of equal names reads the folder. As a further arm of the study:
`./run_all.sh --synthetic NAME=DIR`.
"""
    front = {"license": "other", "task_categories": ["image-segmentation"]}
    front |= {"tags": ["dermoscopy", "synthetic", "medical"], "pretty_name": "Dermoscopic pairs"}
    _write(resolve(order.out) / "README.md", front, text)


def _front(base: str = "") -> dict:
    """The head of a model's card."""
    tags = ["controlnet", "stable-diffusion", "dermoscopy", "medical", "synthetic"]
    front = {"license": "other", "library_name": "diffusers", "tags": tags}
    return front | ({"base_model": base} if base else {})


def usage(settings: config.Settings, base: str, our_class: bool = False) -> str:
    """Python that loads the directories and samples as the run does.

    `base`: a hub id, or '' for the directory beside the ControlNet's; `our_class`: its autoencoder
    is `generators.base.PatchAutoencoder`.
    """
    sampling, size = settings.sampling, settings.data.image_size
    ours = "import lesionlib.generators.base  # its autoencoder's class\n"
    return f"""```python
import diffusers
{ours if our_class else ""}
control = diffusers.ControlNetModel.from_pretrained("controlnet")
pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
    "{base or "base"}", controlnet=control, safety_checker=None)
pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
image = pipe(
    "a dermoscopic image of a melanoma", image=mask,  # white on black, {size} x {size}
    num_inference_steps={sampling.ddim_steps}, guidance_scale={sampling.guidance:g},
    eta={sampling.ddim_eta:g}, controlnet_conditioning_scale={sampling.conditioning_scale:g},
).images[0]
```"""


def _fidelity(folder) -> str:
    """What the run measured of its ControlNet on S-test, in words."""
    path = folder / "generated" / "controlnet" / "manifest.csv"
    if not path.exists():
        return "Not measured in this run."
    values = pd.read_csv(path)["mask_fidelity"]
    return (
        f"Fidelity (Dice of the run's reference segmenter with the mask) on {len(values)} masks of "
        f"held-out images, empty prompt: mean {values.mean():.3f}."
    )


def write_model_cards(folder, settings: config.Settings, places, part):
    """Write README.md into the folders of an exported ControlNet and, if there is one, its base.

    `folder`: the run; `part`: its `dataset.Study` G.
    """
    own, base, size = settings.controlnet, settings.base, settings.data.image_size
    name = "" if len(places) > 1 else _public(base.model)
    code, parts = f"lesionlib {code_version()}", places[-1] / "vae" / "config.json"
    our_class = read_json(parts, {}).get("_class_name") == "PatchAutoencoder"
    trained = f"{own.steps} steps of {own.batch * own.accumulate} images"
    about = f"""{training_data(settings, part)}

**Limits.** {LIMITS}

**Use.**

{usage(settings, name, our_class)}

Guidance by the mask (`control_guidance` {settings.sampling.control_guidance:g} in the run), which
sharpens its outline, is lesionlib's own: these lines are without it.
"""
    given = f"taken from {_public(own.model)}" if own.model else f"trained for {trained} by {code}"
    text = f"""# A ControlNet for dermoscopic lesions

**What.** Paints a lesion where a mask is white, on {base_name(settings)}, {size} px; {given}.

**Measured.** {_fidelity(folder)}

{about}"""
    _write(places[0] / "README.md", _front(name), text)
    for place in places[1:]:
        decoder = "" if own.locked else ", its decoder trained further with the ControlNet"
        text = f"""# The base of a ControlNet for dermoscopic lesions

**What.** A Stable Diffusion of {size} px: {base_name(settings)}{decoder}; by {code}.

{about}"""
        _write(place / "README.md", _front(), text)
