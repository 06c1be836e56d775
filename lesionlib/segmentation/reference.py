"""The reference segmenter, a U-Net trained on real images only, which locates generated lesions.

It is trained once on S-train, with S-val to choose the weights. Later stages compare its
predictions with the masks: in validations, for every synthetic pair, and for Table 1's images.

It must locate lesions anywhere, since synthetic pairs have them anywhere; so it sees warped images,
in training and in validation. What it finds on real images that are moved to the places of the
synthetic pairs' masks (`moved_onto`) is what the synthetic ones are compared with.
"""

import shutil
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from lesionlib.data import augmentation, dataset
from lesionlib.data.prompts import lesion_size
from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import require
from lesionlib.engine.files import atomic_write, read_json, resolve, write_json
from lesionlib.engine.provenance import digest, unchanged
from lesionlib.engine.settings import Augmentation, Reference
from lesionlib.engine.training import Files, device, generator_at
from lesionlib.segmentation import measures, networks, training

COPIES = 3  # warped copies of each validation image, beside the image itself
SHIFTS = 8  # other masks that each prediction is compared with, for the level of chance
TRIES = 24  # real images and turns from which that for a mask is chosen
COARSE = 32  # side in pixels at which they are tried


@dataclass
class ReferenceSegmenter:
    """A segmentation network and the side of its input in pixels: fidelity is measured there."""

    model: nn.Module
    size: int

    def predictions(self, images: np.ndarray) -> np.ndarray:
        """Its masks (N, size, size), uint8 0/1, of images (N, S, S, 3)."""
        return training.predict(self.model, dataset.shrunk(images, self.size))

    def __call__(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Dice (N,) of its prediction on images (N, S, S, 3) with masks (N, S, S)."""
        return measures.dice(self.predictions(images), dataset.shrunk_masks(masks, self.size))


def fidelity(segmenter: ReferenceSegmenter, images, masks, distractor: float) -> pd.DataFrame:
    """How well the lesions of images (N, S, S, 3) lie in masks (N, S, S): a row per image.

    All at the segmenter's size. Columns: dice and hd95 (share of the diagonal) of its prediction
    with the mask; chance, the mean Dice of the same prediction with up to SHIFTS other masks (NaN
    for a single image); distractors, the number of predicted regions that do not touch the mask
    and cover at least `distractor` of the image; size, the lesion's in words.
    """
    found, small = segmenter.predictions(images), dataset.shrunk_masks(masks, segmenter.size)
    others = [np.roll(small, shift, axis=0) for shift in range(1, min(SHIFTS + 1, len(small)))]
    chance = [measures.dice(found, other) for other in others]
    pairs = list(zip(found.astype(bool), small.astype(bool), strict=True))
    return pd.DataFrame(
        {
            "dice": measures.dice(found, small),
            "hd95": [measures.boundary(*pair, tolerance=0)["hd95"] for pair in pairs],
            "chance": np.mean(chance, axis=0) if chance else np.nan,
            "distractors": [distractors(*pair, distractor) for pair in pairs],
            "size": [lesion_size(mask) for mask in masks],
        }
    )


def distractors(found: np.ndarray, mask: np.ndarray, least: float) -> int:
    """The number of regions of `found` (S, S), bool, that do not touch `mask` (S, S), bool.

    Regions are connected over 8 neighbours and cover at least `least` of the image.
    """
    number, regions = cv2.connectedComponents(found.astype(np.uint8))
    areas, inside = (np.bincount(regions[part], minlength=number) for part in (found, found & mask))
    return int(((areas >= least * found.size) & (areas > 0) & (inside == 0)).sum())


def moved_onto(images, masks, targets, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Real images (N, S, S, 3), one for each of `targets`, moved to where that mask lies.

    An image is turned, scaled and shifted (beyond its border goes on its skin) so that its lesion,
    from `masks` (N, S, S), gets the centroid and the area of a target (m, S, S). Of TRIES images
    and turns, that one is kept whose lesion had the most similar area before and has it after: the
    more an image shrinks, the more of its surroundings is made up, and lesions that the border cuts
    have another area. Images of which more than skin goes on beyond the border
    (`augmentation.cut_off`) are moved only if there are no others. Returns images (m, S, S, 3) and
    their moved masks.
    """
    draw, n, side = generator_at(seed, 0), len(targets), masks.shape[1]
    coarse = dataset.shrunk_masks(masks, min(COARSE, side))
    shown = masks.any((1, 2))
    whole = shown & ~augmentation.cut_off(images, masks)
    usable = torch.from_numpy(np.flatnonzero(whole if whole.any() else shown))
    wanted, best = targets.mean((1, 2)).clip(min=1 / side**2), np.full(n, np.inf)
    rows, matrices = np.zeros(n, int), torch.zeros(n, 2, 3)
    for _ in range(TRIES):
        tried = usable[torch.randint(len(usable), (n,), generator=draw)].numpy()
        turn = 2 * torch.pi * torch.rand(n, generator=draw)
        moves = _similarity(masks[tried], targets, turn)
        areas = augmentation.warp_masks(coarse[tried], moves).mean((1, 2))
        cost = np.abs(np.log(wanted / masks[tried].mean((1, 2)))) + np.abs(areas / wanted - 1)
        better = cost < best
        rows[better], matrices[better], best[better] = tried[better], moves[better], cost[better]
    return (
        augmentation.warp_images(images[rows], masks[rows], matrices),
        augmentation.warp_masks(masks[rows], matrices),
    )


def _similarity(masks, targets, turn: torch.Tensor) -> torch.Tensor:
    """Matrices (n, 2, 3) for `augmentation.warp` that move lesions (n, S, S) onto targets."""
    (centre, area), (goal, wanted) = _place(masks), _place(targets)
    scale = (wanted / area).sqrt()
    cos, sin = turn.cos() / scale, turn.sin() / scale  # from the result back to the picture
    linear = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    return torch.cat([linear, (centre - (linear @ goal[:, :, None])[:, :, 0])[:, :, None]], dim=2)


def _place(masks) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroids (n, 2), x and y in a square from -1 to 1, and areas (n,) of masks (n, S, S)."""
    masks = torch.from_numpy(np.float32(masks))
    at = (torch.arange(masks.shape[1]) + 0.5) / masks.shape[1] * 2 - 1
    area = masks.sum((1, 2)).clamp(min=1)
    centre = torch.stack([(masks.sum(1) * at).sum(1), (masks.sum(2) * at).sum(1)], dim=1)
    return centre / area[:, None], area / masks[0].numel()


def on_real_images(
    segmenter: ReferenceSegmenter, test, targets, settings: Reference
) -> pd.DataFrame:
    """`fidelity` on real images that it was not trained on, in place and moved: a row per image.

    `test` is the study's S-test; it is moved onto the first `settings.moved` of the masks
    `targets` (m, S, S). The column `images` says "in place" or "moved".
    """
    moved = moved_onto(test.images, test.masks, targets[: settings.moved], settings.seed)
    pairs = {"in place": (test.images, test.masks), "moved": moved}
    rows = [
        fidelity(segmenter, *pair, settings.distractor).assign(images=name)
        for name, pair in pairs.items()
    ]
    return pd.concat(rows, ignore_index=True)


def recipe(settings: Reference, warps: Augmentation) -> training.Recipe:
    """How it is trained: with the warps if its training is one of `warps.trainings`."""
    return training.Recipe(
        settings.batch,
        settings.lr,
        precision=settings.precision,
        decay="cosine",
        warps=warps if "reference" in warps.trainings else None,
        colour=settings.colour,
        encoder=settings.encoder,
        decoder=tuple(settings.decoder),
    )


def fit(part, val_part, how: training.Recipe, facts: dict, files: Files, key: str) -> nn.Module:
    """The network trained on `part`, (images, masks), with the weights of its best validation.

    Images of `val_part` are validated in place and, with warps, in COPIES warped copies too.
    `facts`: seed and steps.
    """
    images, masks = val_part
    if how.warps is not None:
        always = how.warps.model_copy(update={"share": 1.0, "variants": COPIES})
        copies = augmentation.variants(images, masks, always, "reference")
        warped = [augmentation.warp_images(images, masks, copy) for copy in copies]
        images = np.concatenate([images, *warped])
        masks = np.concatenate([masks, *(augmentation.warp_masks(masks, c) for c in copies)])
    return training.train("unet", part, (images, masks), how, **facts, files=files, key=key)


def train(run, study, settings: Reference, warps: Augmentation, **additions) -> ReferenceSegmenter:
    """Train the reference segmenter of a run in models/reference_segmenter, unless it is current.

    An interrupted training continues from the run's checkpoints/reference_segmenter, where the
    weights are kept too: Snakemake deletes what a stage is to make before it executes it again.
    `additions` are added to the record.
    """
    folder = resolve(run) / "models" / "reference_segmenter"
    part, val_part = (
        dataset.resized(part.images, part.masks, settings.size)
        for part in (study.part("S-train"), study.part("S-val"))
    )
    target, inputs = folder / "model.safetensors", {"S-train": digest(*part)}
    inputs["S-val"] = digest(*val_part)
    how, facts = recipe(settings, warps), {"seed": settings.seed, "steps": settings.steps}
    artefact = Artefact(target, (fit,), how.determining() | facts, inputs)
    if not artefact.is_current():
        work = resolve(run) / "checkpoints" / "reference_segmenter"
        files, kept = Files(work / "checkpoint.pt", work / "log.csv"), work / target.name
        trained = replace(artefact, path=kept)
        if not trained.is_current():
            model = fit(part, val_part, how, facts, files, artefact.digest)
            with atomic_write(kept) as temporary:
                save_model(model, temporary)
            trained.record()
            files.checkpoint.unlink(missing_ok=True)
        options = {"encoder": settings.encoder, "decoder_channels": settings.decoder}
        write_json(folder / "config.json", {"size": settings.size, "options": options})
        with atomic_write(target) as temporary:
            shutil.copyfile(kept, temporary)
        artefact.record(**additions)
    return load(run)


def load(run) -> ReferenceSegmenter:
    """The reference segmenter of a run; InputError if notebook 02 has not trained it."""
    folder = resolve(run) / "models" / "reference_segmenter"
    path = unchanged(require(folder / "model.safetensors", "02_masks"))
    config = read_json(folder / "config.json")
    model = networks.build("unet", **config["options"])
    load_model(model, path)
    return ReferenceSegmenter(model.to(device()).eval(), config["size"])
