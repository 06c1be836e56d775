"""The attribute classifier: does a generated image show what its prompt names?

It learns diagnosis and dermoscopic attributes from the real images of G and is tested on real
images on which neither it nor a generator was trained. It is then applied to generated images of
the same masks and noise whose prompts differ in one word.
"""

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional as F

from lesionlib.data import prompts
from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import require
from lesionlib.engine.files import atomic_write, read_json, resolve, write_json
from lesionlib.engine.provenance import digest, record, unchanged
from lesionlib.engine.training import (
    Schedule,
    batch_at,
    device,
    fit,
    generator_at,
    resolved_precision,
)
from lesionlib.segmentation import networks

BATCH, LR = 32, 1e-3
NETWORK = "resnet10t"  # of timm: small, and sufficient at 64 pixels


def targets(table: pd.DataFrame, diagnoses) -> pd.DataFrame:
    """One column per diagnosis and attribute: 1 present, 0 absent, NaN unknown."""
    named = table["diagnosis"].fillna("")
    found = {d: (named == d).astype(float).where(named != "") for d in diagnoses}
    found |= {a: pd.to_numeric(table[a], errors="coerce") for a in prompts.ATTRIBUTES}
    return pd.DataFrame(found)


def train(
    images,
    goals: pd.DataFrame,
    folder,
    *,
    steps: int,
    seed: int,
    record,
    precision="auto",
    warps=None,
) -> nn.Module:
    """A ResNet with one logit per column of `goals`, on uint8 images (N, S, S, 3).

    Binary cross-entropy over the known labels (`targets`); rare labels count as much as common
    ones. `precision`: auto, no or bf16, see `training.resolved_precision`. `warps`: the settings by
    which images are warped (None: eight orientations only). `folder` keeps checkpoint and log (see
    `training.fit`).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _untrained(goals.shape[1])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(device())
    labels = torch.tensor(goals.to_numpy(), dtype=torch.float32, device=device())
    known = ~labels.isnan()
    share = (labels.nan_to_num().sum(0) / known.sum(0).clamp(min=1)).clamp(0.02, 0.98)
    weight = torch.where(labels == 1, 0.5 / share, 0.5 / (1 - share)) * known
    enabled = resolved_precision(precision, model) == "bf16"

    def loss_at(model, step):
        rows = batch_at(step, BATCH, len(images), seed).to(pixels.device)
        batch_pixels = networks.augment(pixels[rows], generator_at(seed, step), warps)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=enabled):
            logits = model(networks.inputs(batch_pixels))
        each = F.binary_cross_entropy_with_logits(
            logits.float(), labels[rows].nan_to_num(), reduction="none"
        )
        return (each * weight[rows]).sum() / known[rows].sum().clamp(min=1)

    model.to(memory_format=torch.channels_last)
    schedule = Schedule(steps, LR, warmup=steps // 10, weight_decay=0.05)
    return fit(model, loss_at, folder, schedule, record, desc="attribute_classifier")


def precision_of(training) -> str:
    """The mixed precision of its training: that of the generators, but 32 bits in place of fp16."""
    return training.precision.replace("fp16", "no")


def prepare(run, part, goals: pd.DataFrame, settings, **facts) -> nn.Module:
    """The classifier of a run, trained on the images of a `dataset.Study` unless it is current.

    Uses the groups `classifier`, `training` and `augmentation` of `settings`.
    """
    folder, seed = resolve(run), settings.training.generator_seed
    precision = precision_of(settings.training)
    warps = settings.augmentation if "classifier" in settings.augmentation.trainings else None
    values = {"steps": settings.classifier.steps, "seed": seed, "precision": precision}
    weights = Artefact(
        folder / "models" / "attribute_classifier" / "model.safetensors",
        (train,),
        values | {"augmentation": settings.augmentation.applied("classifier")},
        {"G": digest(part.images, goals.to_numpy())},
    )
    if not weights.is_current():
        work = folder / "checkpoints" / "attribute_classifier"
        options = dict(values, record=weights.key, warps=warps)
        model = train(part.images, goals, work, **options)
        facts["precision"] = resolved_precision(precision, model)
        save(model, run, goals.columns, key=weights.key, **facts)
    return load(run)


def _untrained(number: int) -> nn.Module:
    import timm  # slow import, needed only with the classifier

    return timm.create_model(NETWORK, pretrained=False, num_classes=number)


def save(model: nn.Module, run, columns, **facts):
    """Write the classifier to models/attribute_classifier of a run, its record last."""
    folder = resolve(run) / "models" / "attribute_classifier"
    write_json(folder / "config.json", {"columns": list(columns)})
    with atomic_write(folder / "model.safetensors") as temporary:
        save_model(model, temporary)
    record(folder / "model.safetensors", **facts)


def load(run) -> nn.Module:
    """The classifier of a run; InputError if notebook 03 has not trained it."""
    folder = resolve(run) / "models" / "attribute_classifier"
    path = unchanged(require(folder / "model.safetensors", "03_controlnet"))
    model = _untrained(len(read_json(folder / "config.json")["columns"]))
    load_model(model, path)
    return model.to(device(), memory_format=torch.channels_last).eval()


@torch.no_grad()
def scores(model, images: np.ndarray, columns, batch: int = 64) -> pd.DataFrame:
    """The model's logit for each column, a row per uint8 image (N, S, S, 3)."""
    model.eval()
    model_device, found = next(model.parameters()).device, []
    for i in range(0, len(images), batch):
        part = torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2).to(model_device)
        found.append(model(networks.inputs(part)).float().cpu())
    return pd.DataFrame(torch.cat(found).numpy(), columns=list(columns))


def label_requests(diagnoses) -> pd.DataFrame:
    """Labels of prompts to test: each diagnosis, then the first diagnosis with each attribute."""
    rows = [{"diagnosis": d} for d in diagnoses]
    rows += [{"diagnosis": diagnoses[0], a: 1} for a in prompts.ATTRIBUTES]
    table = pd.DataFrame(rows, columns=["diagnosis", *prompts.ATTRIBUTES])
    table[list(prompts.ATTRIBUTES)] = table[list(prompts.ATTRIBUTES)].fillna(0)
    table["asked"] = [*diagnoses, *prompts.ATTRIBUTES]
    table["prompt"] = [prompts.prompt(row) for row in table.to_dict("records")]
    return table


def auc(positives, negatives) -> float:
    """Probability that a positive exceeds a negative score, ties half; NaN without either."""
    if not len(positives) or not len(negatives):
        return float("nan")
    from sklearn.metrics import roc_auc_score  # slow import, needed only here

    classes, halves = (
        np.repeat([1, 0], [len(positives), len(negatives)]),
        2 * len(positives) * len(negatives),
    )
    area = roc_auc_score(classes, np.concatenate([positives, negatives]))
    return round(halves * area) / halves  # a multiple of half a pair: removes rounding


def table(
    requests: pd.DataFrame, made: pd.DataFrame, real: pd.DataFrame, real_scores: pd.DataFrame
):
    """Prompted against classified: a row per label, with the area under the ROC curve.

    `requests` (`label_requests`) and `made` (scores) have a row per generated image; `real`
    (targets) and `real_scores` a row per real one. A diagnosis is compared with images prompted
    with another diagnosis and no attribute; an attribute with those of the first diagnosis alone.
    Chance is 0.5; the area on real images is the upper bound.
    """
    plain = (requests[list(prompts.ATTRIBUTES)] == 0).all(axis=1)
    first = requests["diagnosis"].iloc[0]
    rows = []
    for name in made.columns:
        attribute = name in prompts.ATTRIBUTES
        yes = requests["asked"] == name
        no = plain & ((requests["diagnosis"] == first) if attribute else ~yes)
        has, has_not = real[name] == 1, real[name] == 0
        rows.append(
            {
                "label": name,
                "asked": int(yes.sum()),
                "not_asked": int(no.sum()),
                "auc_generated": auc(made.loc[yes, name], made.loc[no, name]),
                "chance": 0.5,
                "real": int(has.sum()),
                "auc_real": auc(real_scores.loc[has, name], real_scores.loc[has_not, name]),
            }
        )
    return pd.DataFrame(rows)
