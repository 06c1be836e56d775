"""Training and sampling of a ControlNet for a run, here or in processes of their own.

`python -m lesionlib.generators.jobs JOB.json`, also under `accelerate launch`, does the training or
sampling of notebook 03 in processes of its own; `launch` writes the job and starts it.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve, write_json, write_npy
from lesionlib.engine.provenance import digest
from lesionlib.engine.training import device
from lesionlib.generators import latents as cache
from lesionlib.generators.controlnet import ControlledUNet, load, new, sample, train


def train_job(run, job: dict):
    """Train as a job says, watched; returns the base's pipeline and the controlled UNet.

    `job`: base (directory or id, '' for the run's own), locked, middle_only, seed, schedule (of
    `train` and `training.fit`), watch (samples, ddim_steps), and whatever else should be in the
    record: a training goes on, or is done, only if the whole job is the same.
    """
    from lesionlib.data import dataset
    from lesionlib.generators import base, validation
    from lesionlib.segmentation import reference

    folder, study = resolve(run) / "checkpoints" / "controlnet", dataset.load(run)
    own, held_out = study.part("G"), study.part("S-val")
    pipe = base.load(job["base"] or f"{run}/models/base")
    pipe.to(device())
    controlled = new(pipe, job["seed"], locked=job["locked"], middle_only=job["middle_only"])
    controlled.to(device())
    seen = validation.validator(
        pipe,
        controlled,
        held_out.images,
        held_out.masks,
        reference.load(run),
        folder / "validations",
        seed=job["seed"],
        precision=job["schedule"]["precision"],
        **job["validation"],
    )
    latents = cache.encode_images(pipe, own.images, folder.parent / "latents")
    options = dict(record=job, seed=job["seed"], validate=seen, **job["schedule"])
    return pipe, train(pipe, controlled, latents, own.masks, own.table["prompt"], folder, **options)


def painter(pipe, controlled, masks, prompts, how: dict, seed: int):
    """A function of image numbers that samples these images; `how`: options of `sample`."""

    def make(indices):
        words = [prompts[i] for i in indices]
        return sample(pipe, controlled, masks[indices], words, indices=indices, seed=seed, **how)

    return make


def sample_job(run, job: dict):
    """Paint this process's share of a synthetic set: a batch of every so many is its own.

    `job`: folder, masks (.npy), prompts, base (as in `train_job`), control (whether the run's
    ControlNet steers), how (of `sample`), and seed, model, settings for `sets.paint`.
    """
    from accelerate import PartialState

    from lesionlib.generators import base, sets  # they use this module

    folder, masks, state = resolve(run), np.load(job["masks"]), PartialState()
    pipe = base.load(job["base"] or f"{run}/models/base").to(device())
    controlled = load(pipe, folder / "models" / "controlnet") if job["control"] else None

    make = painter(pipe, controlled, masks, job["prompts"], job["how"], job["seed"])
    facts = {name: job[name] for name in ("seed", "model", "settings")}
    share = state.process_index, state.num_processes
    sets.paint(
        resolve(job["folder"]),
        masks,
        job["prompts"],
        make,
        job["folder"],
        share=share,
        block=job["how"]["batch"],
        **facts,
    )


def fill(
    run,
    pipe,
    name,
    controlled,
    masks,
    prompts,
    asked,
    *,
    how,
    seed,
    segmenter,
    command,
    base,
    **facts,
):
    """Paint a set of images into the folder `name` of a run, as `sets.fill` does.

    `controlled` None: by the base alone (`base`: as in `train_job`). `asked`: what masks and
    prompts depend on; together with weights, `how` (of `sample`) and seed it is all that determines
    the images. `command`, if there is one, starts processes that paint them first.
    """
    from lesionlib.generators import sets  # it uses this module's neighbours

    folder, weights = resolve(run) / name, (controlled or ControlledUNet(pipe.unet)).digest()
    settings = {key: value for key, value in how.items() if key != "batch"}
    own = dict(seed=seed, model=weights, settings=settings)
    key = digest(weights, settings, seed, digest(*asked))
    if command:
        path = resolve(run) / "checkpoints" / "controlnet" / "masks.npy"
        write_npy(path, masks)
        sets.begin(folder, key)
        job = dict(folder=str(folder), masks=str(path), prompts=list(prompts), how=how, base=base)
        launch(command, run, job | own | {"control": controlled is not None}, "sample")
    make = painter(pipe, controlled, masks, prompts, how, seed)
    sets.fill(folder, masks, prompts, make, key, name, segmenter=segmenter, **own, **facts)


def launch(command: str, run, job: dict, what: str = "train"):
    """Do a job (`train_job`, `sample_job`) in processes that `command` starts; InputError.

    `command` is such as "accelerate launch". What the processes leave behind is what this one
    would have left: call `train_job` or `sets.fill` afterwards to take it up.
    """
    path = resolve(run) / "checkpoints" / "controlnet" / "job.json"
    write_json(path, {"run": str(run), "job": job, "what": what})
    words = [*shlex.split(command), "-m", "lesionlib.generators.jobs", str(path)]
    try:
        subprocess.run(words, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"launch: {command}",
            f"what it started failed ({error})",
            "read the messages above; an empty `launch` stays in the notebook's own process",
        ) from error


if __name__ == "__main__":
    values = json.loads(Path(sys.argv[1]).read_text())
    {"train": train_job, "sample": sample_job}[values["what"]](values["run"], values["job"])
