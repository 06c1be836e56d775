"""The reference segmenter, a U-Net trained on real images only, which locates generated lesions.

It is trained once on S-train, with S-val to choose the weights. Later stages compare its
predictions with the masks: in validations, for every synthetic pair, and for Table 1's images.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from safetensors.torch import load_model, save_model
from torch import nn

from lesionlib.data import dataset
from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import require
from lesionlib.engine.files import atomic_write, read_json, resolve, write_json
from lesionlib.engine.provenance import digest, unchanged
from lesionlib.engine.settings import Reference
from lesionlib.engine.training import Files, device
from lesionlib.segmentation import measures, networks, training


@dataclass
class ReferenceSegmenter:
    """A segmentation network and the side of its input in pixels."""

    model: nn.Module
    size: int

    def __call__(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Dice (N,) of its prediction on images (N, S, S, 3) with masks (N, S, S)."""
        images, masks = dataset.resized(images, masks, self.size)
        return measures.dice(training.predict(self.model, images), masks)


def measure(segmenter: ReferenceSegmenter, images, masks, tolerance: float) -> pd.DataFrame:
    """`measures.segmentation` of its predictions on images (N, S, S, 3), a row per image.

    At the size of `masks` (N, S, S); surfaces within `tolerance` of the image's diagonal.
    """
    small = dataset.shrunk(images, segmenter.size)
    pairs = zip(training.probabilities(segmenter.model, small), masks, strict=True)
    return pd.DataFrame([measures.segmentation(p, m, tolerance) for p, m in pairs])


def fit(part, val_part, settings: Reference, files: Files, key: str) -> nn.Module:
    """The network trained on `part`, (images, masks), with the weights of its best validation."""
    steps = training.count_steps(len(part[0]), settings.epochs, settings.batch)
    options = {"encoder": settings.encoder, "decoder": tuple(settings.decoder)}
    recipe = training.Recipe(settings.batch, settings.lr, **options)
    call = dict(seed=0, steps=steps, files=files, key=key)
    return training.train("unet", part, val_part, recipe, **call)


def train(run, study, settings: Reference, **facts) -> ReferenceSegmenter:
    """Train the reference segmenter of a run in models/reference_segmenter, unless it is current.

    An interrupted training continues from the run's checkpoints/reference_segmenter.
    """
    folder = resolve(run) / "models" / "reference_segmenter"
    part, val_part = (
        dataset.resized(part.images, part.masks, settings.size)
        for part in (study.part("S-train"), study.part("S-val"))
    )
    target, inputs = folder / "model.safetensors", {"S-train": digest(*part)}
    inputs["S-val"] = digest(*val_part)
    artefact = Artefact(target, (fit,), settings.determining(), inputs)
    if not artefact.is_current():
        work = resolve(run) / "checkpoints" / "reference_segmenter"
        files = Files(work / "checkpoint.pt", work / "log.csv")
        model = fit(part, val_part, settings, files, artefact.digest)
        options = {"encoder": settings.encoder, "decoder_channels": settings.decoder}
        write_json(folder / "config.json", {"size": settings.size, "options": options})
        with atomic_write(target) as temporary:
            save_model(model, temporary)
        artefact.record(**facts)
        files.checkpoint.unlink(missing_ok=True)
    return load(run)


def load(run) -> ReferenceSegmenter:
    """The reference segmenter of a run; InputError if notebook 02 has not trained it."""
    folder = resolve(run) / "models" / "reference_segmenter"
    path = unchanged(require(folder / "model.safetensors", "02_masks"))
    config = read_json(folder / "config.json")
    model = networks.build("unet", **config["options"])
    load_model(model, path)
    return ReferenceSegmenter(model.to(device()).eval(), config["size"])
