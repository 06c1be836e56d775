"""Does the lesion stand where the mask says? A U-Net that was trained on real images only.

Trained once, on S-train with S-val to choose the weights, and asked by every later stage: during
training of a generator, for every synthetic pair, and for Table 1's images.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file
from torch import nn

from lesionlib import data, metrics, segmentation
from lesionlib.errors import require
from lesionlib.files import aside, read_json, resolve, write_json
from lesionlib.provenance import code_digest, record, recorded, unchanged
from lesionlib.training import device


@dataclass
class Judge:
    """A segmentation network and the pixels per side that it sees."""

    model: nn.Module
    size: int

    def __call__(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Dice (N,) of its prediction on images (N, S, S, 3) with masks (N, S, S)."""
        images, masks = data.resized(images, masks, self.size)
        return metrics.dice(segmentation.predict(self.model, images), masks)

    def measures(self, images: np.ndarray, masks: np.ndarray, tolerance: float) -> pd.DataFrame:
        """`metrics.segmentation` of its predictions, a row per image, at the size of `masks`."""
        found = segmentation.probabilities(self.model, data.shrunk(images, self.size))
        pairs = zip(found, masks, strict=True)
        return pd.DataFrame([metrics.segmentation(p, m, tolerance) for p, m in pairs])


def train(run, study, *, size: int, options: dict, epochs: int, batch: int, lr: float, **facts):
    """Train the judge of a run and write it to models/judge; a finished one is left alone.

    `options` go to `segmentation.build`. Returns the judge.
    """
    folder = resolve(run) / "models" / "judge"
    settings = dict(size=size, options=options, epochs=epochs, batch=batch, lr=lr)
    key = dict(settings, data=study.fingerprint, code=code_digest("segmentation"))
    target = folder / "model.safetensors"
    if not target.exists() or recorded(target).get("key") != key:
        train_part, val_part = (
            data.resized(part.images, part.masks, size)
            for part in (study.part("S-train"), study.part("S-val"))
        )
        steps = segmentation.steps_of(len(train_part[0]), epochs, batch)
        model = segmentation.train(
            "unet", *train_part, *val_part, steps=steps, batch=batch, lr=lr, seed=0, **options
        )
        write_json(folder / "config.json", {"size": size, "options": options})
        with aside(target) as temporary:
            save_file({k: x.contiguous() for k, x in model.state_dict().items()}, temporary)
        record(target, key=key, **facts)
    return load(run)


def load(run) -> Judge:
    """The judge of a run; InputError if notebook 02 has not trained it."""
    folder = resolve(run) / "models" / "judge"
    weights = load_file(unchanged(require(folder / "model.safetensors", "02_masks")))
    config = read_json(folder / "config.json")
    model = segmentation.build("unet", **config["options"])
    model.load_state_dict(weights)
    return Judge(model.to(device()).eval(), config["size"])
