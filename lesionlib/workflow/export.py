"""`./run_all.sh --export RUN --out DIR`: a trained ControlNet and its base, for plain diffusers.

DIR/controlnet and DIR/base are directories that diffusers loads, each with a card in the hub's
format. A base that is on the hub and was not trained further is not copied: the card names it.
"""

import shutil
from pathlib import Path

from lesionlib.data import dataset
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve
from lesionlib.engine.settings import Settings
from lesionlib.generators import base, controlnet, jobs
from lesionlib.workflow import cards


def _without_places(pipe, controlled):
    """Forget the folders that models were loaded from: they would be written to their files."""
    for part in (pipe, *pipe.components.values(), controlled.unet, controlled.controlnet):
        for holder in (part, getattr(part, "config", None)):
            if hasattr(holder, "_name_or_path"):
                holder._name_or_path = ""
        if hasattr(part, "register_to_config"):
            part.register_to_config(_name_or_path="")


def needs_base(settings: Settings) -> bool:
    """Whether the base leaves the run too: it is not on the hub, or was trained here."""
    own = settings.base
    local = own.model == "small" or resolve(own.model).exists()
    return own.is_trained or local or not settings.controlnet.locked


def export(run, out) -> list[Path]:
    """Write the ControlNet of a finished run and, unless it is on the hub, its base; the folders.

    InputError for an unfinished run, and if `out` is not empty.
    """
    settings, out, folder = cards.finished(run), resolve(out), resolve(run)
    if out.exists() and any(out.iterdir()):
        raise InputError(out, "it is not empty", "give a folder that does not exist yet (--out)")
    pipe = jobs.load_base(folder, settings)
    controlled = controlnet.load(pipe, folder / "models" / "controlnet")
    _without_places(pipe, controlled)
    made = [out / "controlnet"]
    controlnet.save(controlled, made[0])
    shutil.rmtree(made[0] / "unet", ignore_errors=True)  # it is in the base
    if needs_base(settings):
        pipe.unet = controlled.unet
        made.append(out / "base")
        base.save(pipe, made[1])
    part = dataset.load(folder).part("G")
    cards.write_model_cards(folder, settings, made, part)
    cards.write_trained_on(made[0], settings, part)
    return made


def options(parser):
    """The command line's options."""
    parser.add_argument("--export", required=True, metavar="RUN", help="a finished run: runs/NAME")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder for the models")


def main(given) -> int:
    """Run the command with its parsed options; returns the exit status."""
    for place in export(given.export, given.out):
        print(f"written: {place}")
    return 0
