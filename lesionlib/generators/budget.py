"""The budget of the generators: how many images each sees in its training."""

import pandas as pd

from lesionlib.engine.errors import InputError
from lesionlib.engine.settings import ControlNet, Pix2PixHD


def diffusion_images(settings) -> dict[str, int]:
    """Images, with repetition, that base and ControlNet see in this run."""
    own, base = settings.controlnet, settings.base
    return {
        "base": base.steps * base.batch if base.is_trained else 0,
        "controlnet": 0 if own.model else planned_images(own),
    }


def planned_images(own: ControlNet) -> int:
    """Images, with repetition, that a ControlNet of these settings sees if it is trained."""
    return own.steps * own.batch * own.accumulate


def images_seen(settings: Pix2PixHD) -> int:
    """Images, with repetition, that a Pix2PixHD of these settings sees in both its stages."""
    return settings.batch * (settings.steps + settings.fine_steps * bool(settings.enhancers))


def pix2pixhd_settings(settings) -> Pix2PixHD:
    """The settings of Pix2PixHD; with 0 steps, those in which it sees as many images.

    As many as base and ControlNet together, the finer generator's training included; where a
    trained ControlNet is given, as many as one of these settings would. InputError if that training
    alone sees more.
    """
    own = settings.pix2pixhd
    if own.steps:
        return own
    total = diffusion_images(settings)["base"] + planned_images(settings.controlnet)
    fine = images_seen(own)
    steps = (total - fine) // own.batch
    if steps < 1:
        problem = f"its finer generator would see {fine} images, base and ControlNet see {total}"
        raise InputError("pix2pixhd_steps 0", problem, "lower pix2pixhd_fine_steps, or name steps")
    return own.model_copy(update={"steps": steps})


def table(settings) -> pd.DataFrame:
    """A row per training of this run: optimiser steps, images per step, images seen."""
    own, pix = settings.controlnet, pix2pixhd_settings(settings)
    rows = [("base", settings.base.steps, settings.base.batch)] if settings.base.is_trained else []
    rows += [] if own.model else [("ControlNet", own.steps, own.batch * own.accumulate)]
    steps = images_seen(pix) // pix.batch
    rows += [(name, steps, pix.batch) for name in ("Pix2PixHD", "Pix2PixHD+ (ours)")]
    found = pd.DataFrame(rows, columns=["training", "steps", "images per step"])
    return found.assign(**{"images seen": found["steps"] * found["images per step"]})
