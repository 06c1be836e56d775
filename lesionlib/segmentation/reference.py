"""Does the lesion stand where the mask says? A U-Net that was trained on real images only.

Trained once, on S-train with S-val to choose the weights, and asked by every later stage: during
training of a generator, for every synthetic pair, and for Table 1's images.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file
from torch import nn

from lesionlib.data import dataset
from lesionlib.engine.errors import require
from lesionlib.engine.files import atomic_write, read_json, resolve, write_json
from lesionlib.engine.provenance import code_digest, record, recorded, unchanged
from lesionlib.engine.training import device
from lesionlib.segmentation import measures, networks, training


@dataclass
class ReferenceSegmenter:
    """A segmentation network and the pixels per side that it sees."""

    model: nn.Module
    size: int

    def __call__(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Dice (N,) of its prediction on images (N, S, S, 3) with masks (N, S, S)."""
        images, masks = dataset.resized(images, masks, self.size)
        return measures.dice(training.predict(self.model, images), masks)

    def measures(self, images: np.ndarray, masks: np.ndarray, tolerance: float) -> pd.DataFrame:
        """`measures.segmentation` of its predictions, a row per image, at the size of `masks`."""
        found = training.probabilities(self.model, dataset.shrunk(images, self.size))
        pairs = zip(found, masks, strict=True)
        return pd.DataFrame([measures.segmentation(p, m, tolerance) for p, m in pairs])


def train(run, study, *, size: int, options: dict, epochs: int, batch: int, lr: float, **facts):
    """Train the reference segmenter of a run into models/reference_segmenter, unless it is there.

    `options` go to `networks.build`. Returns the reference segmenter.
    """
    folder = resolve(run) / "models" / "reference_segmenter"
    settings = dict(size=size, options=options, epochs=epochs, batch=batch, lr=lr)
    key = dict(settings, data=study.fingerprint, code=code_digest("segmentation"))
    target = folder / "model.safetensors"
    if not target.exists() or recorded(target).get("key") != key:
        train_part, val_part = (
            dataset.resized(part.images, part.masks, size)
            for part in (study.part("S-train"), study.part("S-val"))
        )
        steps = training.steps_of(len(train_part[0]), epochs, batch)
        model = training.train(
            "unet", *train_part, *val_part, steps=steps, batch=batch, lr=lr, seed=0, **options
        )
        write_json(folder / "config.json", {"size": size, "options": options})
        with atomic_write(target) as temporary:
            save_file({k: x.contiguous() for k, x in model.state_dict().items()}, temporary)
        record(target, key=key, **facts)
    return load(run)


def load(run) -> ReferenceSegmenter:
    """The reference segmenter of a run; InputError if notebook 02 has not trained it."""
    folder = resolve(run) / "models" / "reference_segmenter"
    weights = load_file(unchanged(require(folder / "model.safetensors", "02_masks")))
    config = read_json(folder / "config.json")
    model = networks.build("unet", **config["options"])
    model.load_state_dict(weights)
    return ReferenceSegmenter(model.to(device()).eval(), config["size"])
