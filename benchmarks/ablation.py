"""The ablation of changes to the generators: what was tried on real images, and what it was worth.

`python -m benchmarks.ablation runs/isic config/ablation/isic.yaml` trains every variant on the G of
the run and measures its images. A variant is the plan's settings with the changes that it names; one
that was measured before, with the same settings, data and code, is not trained again. `--variants` measures
some only, so that several processes can share the work.
"""

import argparse
import sys
import time

import numpy as np
import pandas as pd
import yaml

from lesionlib.data import dataset
from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json, resolve, write_csv, write_json, write_npy
from lesionlib.engine.provenance import code_digest, code_version, digest
from lesionlib.engine.training import device
from lesionlib.evaluation import distribution
from lesionlib.generators import base, controlnet, latents, pix2pixhd
from lesionlib.segmentation import reference

SHOWN = 300  # masks of S-train (or two thirds): no generator has seen them, no table is about them
SAMPLING = ("ddim_steps", "ddim_eta", "base_reach")  # change the images, but not the training
OWN = (
    "base_",
    "controlnet_",
    "pix2pixhd_",
    "ddim_",
    "min_",
    "warmup",
    "gradient_",
    "ema",
    "precision",
    "generator_seed",
    "sample_seed",
)  # settings that these generators know
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
    "version",
]


def variants(plan: dict):
    """Yield (generator, variant, settings) in the plan's order."""
    for generator, some in plan["variants"].items():
        for variant in some:
            changed = plan["settings"] | variant.get("change", {})
            yield generator, variant, config.load(plan["preset"], changed)


def named(settings: dict, prefix: str, *names: str) -> dict:
    """Settings prefix_name as {name: value}."""
    return {name: settings[f"{prefix}_{name}"] for name in names}


def by_controlnet(s: dict, G, masks, folder) -> np.ndarray:
    """Images (N, S, S, 3) of a base and a ControlNet with settings `s`; empty prompts."""
    seed, said = s["generator_seed"], G.table["prompt"]
    record = {"settings": digest({k: v for k, v in s.items() if k not in SAMPLING})}
    both = dict(
        min_snr=s["min_snr"],
        warmup=s["warmup"],
        clip=s["gradient_clip"],
        ema=s["ema"],
        precision=s["precision"],
        save_every=s["save_every"],
        seed=seed,
        record=record,
    )
    sizes = named(
        s,
        "base",
        "channels",
        "attention",
        "text_width",
        "whitening",
        "latent_channels",
        "patch",
        "reach",
    )
    pipe = base.new(G.images, said, folder / "base", seed=seed, **sizes)
    z = latents.encode_images(pipe, G.images, folder / "latents")
    schedule = ("steps", "batch", "lr", "prompt_dropout")
    base.train(pipe, z, said, folder / "base", **named(s, "base", *schedule), **both)
    controlled = controlnet.new(pipe, seed)
    controlnet.train(
        pipe,
        controlled,
        z,
        G.masks,
        said,
        folder / "controlnet",
        **named(s, "controlnet", *schedule, "decay"),
        **both,
    )
    how = dict(steps=s["ddim_steps"], eta=s["ddim_eta"], seed=s["sample_seed"])
    return np.stack(list(controlnet.sample(pipe, controlled, masks, [""] * len(masks), **how)))


def by_pix2pixhd(s: dict, G, masks, folder) -> np.ndarray:
    """Images (N, S, S, 3) of a Pix2PixHD with settings `s`."""
    sizes = named(s, "pix2pixhd", "channels", "downsample", "blocks", "enhancers")
    sizes = dict(
        zip(
            ("base_channels", "n_downsample", "n_blocks", "n_enhancers"),
            sizes.values(),
            strict=True,
        )
    )
    generator = pix2pixhd.train(
        G.images,
        G.masks,
        folder,
        record={"settings": digest(s)},
        seed=s["generator_seed"],
        vgg=pix2pixhd.vgg_loss_or_none(s["pix2pixhd_vgg"]),
        precision=s["precision"],
        save_every=s["save_every"],
        device=device(),
        **sizes,
        **named(
            s, "pix2pixhd", "steps", "batch", "lr", "fine_steps", "fixed_steps", "disc_channels"
        ),
    )
    return np.stack(list(pix2pixhd.generate(generator, masks, device=device())))


GENERATORS = {"controlnet": by_controlnet, "pix2pixhd": by_pix2pixhd}


def climb(run, plan: dict, chosen=()) -> pd.DataFrame:
    """Measure the variants of `plan` (those named in `chosen`, if any); a row for each of them.

    KID, recall and coverage are of features of the run's classifier, against the other images
    of S-train; the row "real" compares the originals of the masks with them.
    """
    run = resolve(run)
    study, segmenter = dataset.load(run), reference.load(run)
    G, own = study.part("G"), study.part("S-train")
    extract, _ = distribution.extractor("domain", run)
    rows = np.random.default_rng(0).permutation(len(own.images))
    shown, rest = np.split(rows, [min(SHOWN, 2 * len(rows) // 3)])
    masks, images, others = own.masks[shown], own.images[shown], extract(own.images[rest])

    def measured(made):
        found = distribution.compare(extract(made), others)
        return found | {"mask_fidelity": float(segmenter(made, masks).mean())}

    found = [{"generator": "real", "variant": "real images"} | measured(images)]
    for generator, variant, settings in variants(plan):
        used = {k: v for k, v in settings.items() if k.startswith(OWN)}
        key = digest(generator, used, study.fingerprint, code_digest(generator))
        trained = digest(generator, {k: v for k, v in used.items() if k not in SAMPLING})
        path = run / "ablation" / f"{key}.json"
        if not path.exists() and (not chosen or variant["name"] in chosen):
            print(f"{generator}: {variant['name']}", file=sys.stderr)
            start = time.perf_counter()
            made = GENERATORS[generator](settings, G, masks, run / "ablation" / trained)
            minutes = (time.perf_counter() - start) / 60
            write_npy(path.with_suffix(".npy"), made)
            write_json(path, measured(made) | {"minutes": minutes, "version": code_version()})
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
        table = climb(given.run, yaml.safe_load(plan.read_text()), given.variants)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_csv(plan.with_suffix(".csv"), table.round(4))
    print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
