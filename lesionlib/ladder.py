"""The ladder of changes to the generators: what was tried on real images, and what it was worth.

`python -m lesionlib.ladder runs/isic config/ladder/isic.yaml` trains every rung on the run's G and
measures its images. A rung is the plan's settings with the changes that it names; one that was
measured before, with the same settings, data and code, is not trained again. `--rungs` measures
some only, so that several processes can share the work.
"""

import argparse
import sys
import time

import numpy as np
import pandas as pd
import yaml

from lesionlib import base, config, controlnet, data, distribution, judge, latents, pix2pixhd
from lesionlib.errors import InputError
from lesionlib.files import read_json, resolve, write_csv, write_json, write_npy
from lesionlib.provenance import code_digest, code_version, digest
from lesionlib.training import device

SHOWN = 300  # masks of S-train (or two thirds): no generator has seen them, no table is about them
SAMPLING = ("ddim_steps", "ddim_eta", "base_reach")  # change the images, but not the training
OWN = ("base_", "controlnet_", "pix2pixhd_", "ddim_", "min_", "warmup", "gradient_", "ema",
       "precision", "generator_seed", "sample_seed")  # settings that these generators know
COLUMNS = [
    "generator", "rung", "change", "kept", "n", "kid", "kid_sd", "recall", "coverage",
    "mask_fidelity", "version",
]


def rungs(plan: dict):
    """Yield (generator, rung, settings) in the plan's order."""
    for generator, some in plan["rungs"].items():
        for rung in some:
            changed = plan["settings"] | rung.get("change", {})
            yield generator, rung, config.load(plan["preset"], changed)


def named(settings: dict, prefix: str, *names: str) -> dict:
    """Settings prefix_name as {name: value}."""
    return {name: settings[f"{prefix}_{name}"] for name in names}


def by_controlnet(s: dict, G, masks, folder) -> np.ndarray:
    """Images (N, S, S, 3) of a base and a ControlNet with settings `s`; empty prompts."""
    seed, said = s["generator_seed"], G.table["prompt"]
    record = {"settings": digest({k: v for k, v in s.items() if k not in SAMPLING})}
    both = dict(min_snr=s["min_snr"], warmup=s["warmup"], clip=s["gradient_clip"], ema=s["ema"],
                precision=s["precision"], save_every=s["save_every"], seed=seed, record=record)
    sizes = named(s, "base", "channels", "attention", "text_width", "whitening",
                  "latent_channels", "patch", "reach")
    pipe = base.new(G.images, said, folder / "base", seed=seed, **sizes)
    z = latents.of_images(pipe, G.images, folder / "latents")
    schedule = ("steps", "batch", "lr", "prompt_dropout")
    base.train(pipe, z, said, folder / "base", **named(s, "base", *schedule), **both)
    steered = controlnet.new(pipe, seed)
    controlnet.train(pipe, steered, z, G.masks, said, folder / "controlnet",
                     **named(s, "controlnet", *schedule, "decay"), **both)
    how = dict(steps=s["ddim_steps"], eta=s["ddim_eta"], seed=s["sample_seed"])
    return np.stack(list(controlnet.sample(pipe, steered, masks, [""] * len(masks), **how)))


def by_pix2pixhd(s: dict, G, masks, folder) -> np.ndarray:
    """Images (N, S, S, 3) of a Pix2PixHD with settings `s`."""
    sizes = named(s, "pix2pixhd", "channels", "downsample", "blocks", "enhancers")
    sizes = dict(zip(("base_channels", "n_downsample", "n_blocks", "n_enhancers"),
                     sizes.values(), strict=True))
    generator = pix2pixhd.train(
        G.images, G.masks, folder, record={"settings": digest(s)}, seed=s["generator_seed"],
        vgg=pix2pixhd.vgg_loss_or_none(s["pix2pixhd_vgg"]), precision=s["precision"],
        save_every=s["save_every"], device=device(), **sizes,
        **named(s, "pix2pixhd", "steps", "batch", "lr", "fine_steps", "fixed_steps",
                "disc_channels"))
    return np.stack(list(pix2pixhd.generate(generator, masks, device=device())))


GENERATORS = {"controlnet": by_controlnet, "pix2pixhd": by_pix2pixhd}


def climb(run, plan: dict, chosen=()) -> pd.DataFrame:
    """Measure the rungs of `plan` (those named in `chosen`, if any); a row for each measured one.

    KID, recall and coverage are of features of the run's classifier, against the other images
    of S-train; the row "real" compares the originals of the masks with them.
    """
    run = resolve(run)
    study, ask = data.load(run), judge.load(run)
    G, own = study.part("G"), study.part("S-train")
    extract, _ = distribution.extractor("domain", run)
    rows = np.random.default_rng(0).permutation(len(own.images))
    shown, others = np.split(rows, [min(SHOWN, 2 * len(rows) // 3)])
    masks, images, reference = own.masks[shown], own.images[shown], extract(own.images[others])

    def measured(made):
        found = distribution.compare(extract(made), reference)
        return found | {"mask_fidelity": float(ask(made, masks).mean())}

    found = [{"generator": "real", "rung": "real images"} | measured(images)]
    for generator, rung, settings in rungs(plan):
        used = {k: v for k, v in settings.items() if k.startswith(OWN)}
        key = digest(generator, used, study.fingerprint, code_digest(generator))
        trained = digest(generator, {k: v for k, v in used.items() if k not in SAMPLING})
        path = run / "ladder" / f"{key}.json"
        if not path.exists() and (not chosen or rung["name"] in chosen):
            print(f"{generator}: {rung['name']}", file=sys.stderr)
            start = time.perf_counter()
            made = GENERATORS[generator](settings, G, masks, run / "ladder" / trained)
            minutes = (time.perf_counter() - start) / 60
            write_npy(path.with_suffix(".npy"), made)
            write_json(path, measured(made) | {"minutes": minutes, "version": code_version()})
        if path.exists():
            about = {"generator": generator, "rung": rung["name"], "kept": rung["kept"]}
            change = ", ".join(f"{k} {v}" for k, v in rung.get("change", {}).items())
            found.append(about | {"change": change} | read_json(path))
    return pd.DataFrame(found).reindex(columns=COLUMNS)


def main(arguments=None) -> int:
    """Entry point; writes the table beside the plan."""
    options = argparse.ArgumentParser(description="Measure changes to the generators.")
    options.add_argument("run", help="a run whose notebooks 01 to 03 are done")
    options.add_argument("plan", help="such as config/ladder/isic.yaml")
    options.add_argument("--rungs", nargs="*", default=[], help="these only")
    given = options.parse_args(arguments)
    plan = resolve(given.plan)
    try:
        table = climb(given.run, yaml.safe_load(plan.read_text()), given.rungs)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_csv(plan.with_suffix(".csv"), table.round(4))
    print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
