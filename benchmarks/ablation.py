"""The ablation of changes to the generators: what was tried on real images, and what it was worth.

`python -m benchmarks.ablation runs/isic config/ablation/isic.yaml` trains every variant on the G of
the run and measures its images. A variant is the plan's settings with the changes that it names;
one that was measured before, with the same settings, data and code, is not trained again.
`--variants` measures some only, so that several processes can share the work.
"""

import argparse
import sys
import time

import numpy as np
import pandas as pd
import yaml

from lesionlib.data import dataset
from lesionlib.engine import settings as config
from lesionlib.engine.code import code_digest
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json, resolve, write_csv, write_json, write_npy
from lesionlib.engine.provenance import code_version, digest
from lesionlib.engine.settings import Settings
from lesionlib.engine.training import device
from lesionlib.evaluation import distribution
from lesionlib.generators import base, controlnet, latents, pix2pixhd
from lesionlib.masks import conditions
from lesionlib.segmentation import reference

SHOWN = 300  # masks of S-train (or two thirds): no generator has seen them, no table is about them
GROUPS = {  # of settings that a generator reads
    "controlnet": ("augmentation", "base", "training", "controlnet", "sampling"),
    "pix2pixhd": ("augmentation", "training", "pix2pixhd"),
}
CODE = {  # what makes its weights, and what its images
    "controlnet": (
        (base.new, base.train, controlnet.new, controlnet.train, latents.examples),
        (controlnet.sample, base.PatchAutoencoder),
    ),
    "pix2pixhd": ((pix2pixhd.train,), (pix2pixhd.generate,)),
}
COLUMNS = [
    "generator",
    "variant",
    "change",
    "kept",
    "n",
    "kid",
    "kid_sd",
    "recall",
    "coverage",
    "mask_fidelity",
    "automatic_masks",
    "with_distractor",
    "version",
]


def variants(plan: dict):
    """Yield (generator, variant, settings) in the plan's order."""
    for generator, some in plan["variants"].items():
        for variant in some:
            changed = plan["settings"] | variant.get("change", {})
            yield generator, variant, config.load(plan["preset"], changed)


def keys(generator: str, settings: Settings, data: str) -> tuple[str, str]:
    """What determines the weights, and what determines the images, of a variant."""
    groups = {name: getattr(settings, name).determining() for name in GROUPS[generator]}
    trained = {name: dict(group) for name, group in groups.items() if name != "sampling"}
    trained.get("base", {}).pop("reach", None)  # changes the decoder only
    for_weights, for_images = (code_digest(*functions) for functions in CODE[generator])
    start = _base_digest(settings) if generator == "controlnet" else ""
    weights = digest(generator, trained, data, for_weights, start)
    return weights, digest(weights, groups, for_images)


def _base_digest(settings: Settings) -> str:
    """The digest of the weights of a named base."""
    return base.pipeline_digest(base.load(settings.base.model)) if settings.base.model else ""


def by_controlnet(s: Settings, G, masks, folder) -> np.ndarray:
    """Images (N, S, S, 3) of a base and a ControlNet with settings `s`; empty prompts.

    `folder` keeps the training; its name is what determines the weights.
    """
    seed, record, work = s.training.generator_seed, {"key": folder.name}, folder / "base"
    if s.base.model:
        pipe = base.load(s.base.model).to(device())
    else:
        pipe = base.new(G.images, G.table["prompt"], work, s.base, seed)
    if s.base.finetune or not s.base.model:
        data = latents.examples(pipe, G, s, "base", folder / "latents")
        base.train(pipe, data, work, s.base, s.training, record)
    options = {"locked": s.controlnet.locked, "middle_only": s.controlnet.middle_only}
    controlled = controlnet.new(pipe, seed, **options)
    data = latents.examples(pipe, G, s, "controlnet", folder / "latents")
    target = folder / "controlnet"
    controlnet.train(pipe, controlled, data, target, s.controlnet, s.training, record)
    own = s.sampling.model_copy(update={"guidance": 1.0})
    arguments = pipe, controlled, masks, [""] * len(masks), own
    return np.stack(list(controlnet.sample(*arguments, precision=s.training.precision)))


def by_pix2pixhd(s: Settings, G, masks, folder) -> np.ndarray:
    """Images (N, S, S, 3) of a Pix2PixHD with settings `s`; `folder` as in `by_controlnet`."""
    vgg, record = pix2pixhd.vgg_loss_or_none(s.pix2pixhd.vgg), {"key": folder.name}
    examples = pix2pixhd.Examples(G.images, G.masks, s.augmentation)
    generator = pix2pixhd.train(examples, folder, s.pix2pixhd, s.training, record, vgg=vgg)
    return np.stack(list(pix2pixhd.generate(generator, masks, device=device())))


GENERATORS = {"controlnet": by_controlnet, "pix2pixhd": by_pix2pixhd}


def measure(run, plan: dict, chosen=()) -> pd.DataFrame:
    """Measure the variants of `plan` (those named in `chosen`, if any); a row for each of them.

    KID, recall and coverage are of ImageNet features, against the other images of S-train; the row
    "real" compares the originals of the masks with them. Columns mask_fidelity: of masks of
    S-train; automatic_masks: of masks of notebook 02, to which the real images are moved;
    with_distractor: share of these images with a lesion-like region outside the mask.
    """
    run = resolve(run)
    study, segmenter = dataset.load(run), reference.load(run)
    G, own = study.part("G"), study.part("S-train")
    least = config.load(plan["preset"]).reference.distractor
    extract, _ = distribution.extractor("imagenet", run)
    rows = np.random.default_rng(0).permutation(len(own.images))
    shown, rest = np.split(rows, [min(SHOWN, 2 * len(rows) // 3)])
    masks, images, others = own.masks[shown], own.images[shown], extract(own.images[rest])
    targets = conditions.load(run)[0][:SHOWN]

    def measured(made, moved, their_masks):
        found = distribution.compare(extract(made), others)
        anywhere = reference.fidelity(segmenter, moved, their_masks, least)
        return found | {
            "mask_fidelity": float(segmenter(made, masks).mean()),
            "automatic_masks": float(anywhere["dice"].mean()),
            "with_distractor": float((anywhere["distractors"] > 0).mean()),
        }

    real = measured(images, *reference.moved_onto(images, masks, targets, seed=0))
    found = [{"generator": "real", "variant": "real images"} | real]
    for generator, variant, settings in variants(plan):
        trained, key = keys(generator, settings, study.fingerprint)
        path = run / "ablation" / f"{key}.json"
        if not path.exists() and (not chosen or variant["name"] in chosen):
            print(f"{generator}: {variant['name']}", file=sys.stderr)
            start = time.perf_counter()
            both = np.concatenate([masks, targets])
            both = GENERATORS[generator](settings, G, both, run / "ablation" / trained)
            minutes = (time.perf_counter() - start) / 60
            write_npy(path.with_suffix(".npy"), both)
            results = measured(both[: len(masks)], both[len(masks) :], targets)
            write_json(path, results | {"minutes": minutes, "version": code_version()})
        if path.exists():
            about = {"generator": generator, "variant": variant["name"], "kept": variant["kept"]}
            change = ", ".join(f"{k} {v}" for k, v in variant.get("change", {}).items())
            found.append(about | {"change": change} | read_json(path))
    return pd.DataFrame(found).reindex(columns=COLUMNS)


def main(arguments=None) -> int:
    """Entry point; writes the table beside the plan."""
    options = argparse.ArgumentParser(description="Measure changes to the generators.")
    options.add_argument("run", help="a run whose notebooks 01 to 03 are done")
    options.add_argument("plan", help="such as config/ablation/isic.yaml")
    options.add_argument("--variants", nargs="*", default=[], help="these only")
    given = options.parse_args(arguments)
    plan = resolve(given.plan)
    try:
        table = measure(given.run, yaml.safe_load(plan.read_text()), given.variants)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_csv(plan.with_suffix(".csv"), table.round(4))
    print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
