"""The generators' work on a run: what is outdated is rebuilt, and nothing else."""

import numpy as np
import pandas as pd
import pytest
from small_base import SMALL, pairs

from lesionlib.data import dataset
from lesionlib.engine import artefacts
from lesionlib.engine.files import Log, write_csv, write_json
from lesionlib.engine.settings import (
    ControlNet,
    Pix2PixHD,
    Sampling,
    Settings,
    Training,
    Validation,
)
from lesionlib.generators import controlnet, jobs, pix2pixhd
from lesionlib.segmentation import reference

SETTINGS = Settings(
    base=SMALL.model_copy(update={"steps": 2, "batch": 4}),
    training=Training(ema=0.0, save_every=3),
    controlnet=ControlNet(steps=4, batch=4, locked=False),
    validation=Validation(validate_every=2, validation_samples=2),
    sampling=Sampling(ddim_steps=2),
    pix2pixhd=Pix2PixHD(
        channels=4, downsample=1, blocks=1, disc_channels=4, steps=2, batch=4, vgg="off"
    ),
)
STEPS = ["0", "2", "4"]  # of the validations


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's data, with a reference segmenter that always says 0.5."""
    images, masks, prompts = pairs()
    folder, split = tmp_path / "data", ["G"] * 16 + ["S-val"] * 4 + ["S-test"] * 4
    labels = {"id": [f"i{k}" for k in range(24)], "prompt": prompts, "split": split}
    np.save(_made(folder) / "images.npy", images)
    np.save(folder / "masks.npy", masks)
    write_csv(folder / "index.csv", pd.DataFrame(labels))
    write_json(folder / "index.csv.json", {"data": dataset.fingerprint(folder)})
    weights = _made(tmp_path / "models" / "reference_segmenter") / "model.safetensors"
    weights.write_bytes(b"first")
    monkeypatch.setattr(reference, "load", lambda run: lambda made, few: np.full(len(made), 0.5))
    monkeypatch.setattr(dataset, "ATTRIBUTES", ())
    return tmp_path


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def work(run, settings=SETTINGS):
    """Train and generate; returns the modification times of everything."""
    jobs.prepare_base(run, settings)
    training = jobs.ControlNetTraining(run, settings)
    painter = jobs.Painter(run, settings, training.pipe, training.complete())
    masks = dataset.load(run).part("S-test").masks
    painter.fill("generated/controlnet", masks, [""] * 4)
    painter.fill("generated/base", masks, [""] * 4, control=False)
    generator = jobs.prepare_pix2pixhd(run, settings)
    jobs.fill_pix2pixhd(run, settings, generator, "generated/pix2pixhd", masks, [""] * 4)
    kinds = {
        "base": "models/base/*/*.safetensors",
        "controlnet": "models/controlnet/*.safetensors",
        "pix2pixhd": "models/pix2pixhd/*.safetensors",
        "validations": "checkpoints/controlnet/validations.csv",
        "controlnet images": "generated/[bc]*/images/*.png",
        "pix2pixhd images": "generated/pix2pixhd/images/*.png",
    }
    return {k: {p: p.stat().st_mtime_ns for p in run.glob(v)} for k, v in kinds.items()}


def edit(monkeypatch, *functions):
    """Pretend that the code of these functions was edited."""
    names, known = artefacts.code_digests(*functions), artefacts.code_digests

    def digests(*entries):
        return {k: f"{v} edited" if k in names else v for k, v in known(*entries).items()}

    monkeypatch.setattr(artefacts, "code_digests", digests)


def rebuilt(run, before, settings=SETTINGS):
    after = work(run, settings)
    return {kind for kind, times in after.items() if times != before[kind]}


def test_after_an_edit_of_the_sampling_images_are_rebuilt_and_no_weights(run, monkeypatch, capsys):
    log = run / "checkpoints" / "controlnet" / "validations.csv"
    before = work(run)
    assert [row["step"] for row in Log.read(log)] == STEPS
    assert rebuilt(run, before) == set()
    capsys.readouterr()
    edit(monkeypatch, controlnet.sample, jobs.validation.validator)
    assert rebuilt(run, before) == {"validations", "controlnet images"}
    assert [row["step"] for row in Log.read(log)] == STEPS[-1:]
    assert [path.stem for path in (log.parent / "validations").iterdir()] == ["000004"]
    assert "only the final weights are validated" in capsys.readouterr().out
    before = work(run)
    edit(monkeypatch, pix2pixhd.generate)
    assert rebuilt(run, before) == {"pix2pixhd images"}


def test_after_an_edit_of_a_training_weights_are_rebuilt_and_what_depends_on_them(run, monkeypatch):
    before = work(run)
    edit(monkeypatch, controlnet.train)
    # The same weights come out, so that the images are those that are there.
    assert rebuilt(run, before) == {"controlnet", "validations"}
    log = run / "checkpoints" / "controlnet" / "validations.csv"
    assert [row["step"] for row in Log.read(log)] == STEPS
    before = work(run)
    other = SETTINGS.model_copy(update={"base": SETTINGS.base.model_copy(update={"lr": 0.01})})
    assert rebuilt(run, before, other) == set(before) - {"pix2pixhd", "pix2pixhd images"}


def test_after_a_change_of_the_reference_segmenter_the_final_weights_are_validated(run):
    before = work(run)
    (run / "models" / "reference_segmenter" / "model.safetensors").write_bytes(b"second")
    assert rebuilt(run, before) == {"validations"}


@pytest.mark.parametrize(
    "name, kind",
    [
        ("models/base/vae/diffusion_pytorch_model.safetensors", "base"),
        ("models/controlnet/diffusion_pytorch_model.safetensors", "controlnet"),
        ("models/controlnet/unet/diffusion_pytorch_model.safetensors", "controlnet"),
        ("models/pix2pixhd/model.safetensors", "pix2pixhd"),
        ("checkpoints/controlnet/validations.csv", "validations"),
    ],
)
def test_a_corrupt_file_is_rebuilt(run, name, kind):
    before = work(run)
    path, whole = run / name, (run / name).read_bytes()
    path.write_bytes(whole[:-5])
    assert kind in rebuilt(run, before) <= {kind, "validations"}
    assert path.read_bytes() == whole or kind == "validations"


def test_both_rows_of_pix2pixhd_are_trained_anew_when_what_they_read_changes(run):
    masks = dataset.load(run).part("S-test").masks

    def trained(group="pix2pixhd", **changes):
        own = getattr(SETTINGS, group).model_copy(update=changes)
        settings, times = SETTINGS.model_copy(update={group: own}), {}
        for plus, name in ((False, "pix2pixhd"), (True, "pix2pixhd_plus")):
            generator = jobs.prepare_pix2pixhd(run, settings, plus)
            target = run, settings, generator, f"generated/{name}"
            jobs.fill_pix2pixhd(*target, masks, [""] * 4)
            assert len(list((run / "generated" / name / "images").glob("*.png"))) == 4
            times[name] = (run / "models" / name / "model.safetensors").stat().st_mtime_ns
        return times

    first = trained()
    noisier = trained(noise=3)
    assert noisier["pix2pixhd"] == first["pix2pixhd"]
    assert noisier["pix2pixhd_plus"] > first["pix2pixhd_plus"]
    warped = trained("augmentation", share=0.1)
    assert all(warped[name] > noisier[name] for name in noisier)
    for name in warped:
        assert jobs.sets.remark(run, name) == "perceptual loss: none; resize convolutions"


def test_further_seeds_train_and_generate_beside_the_first_and_outdate_nothing(run, monkeypatch):
    monkeypatch.setattr(
        jobs.conditions, "load", lambda run: (pairs(3)[1], ["a nevus"] * 3, "fingerprint")
    )
    before = work(run)
    seeds = SETTINGS.training.model_copy(update={"generator_seeds": [0, 5]})
    settings = SETTINGS.model_copy(update={"training": seeds})
    pipe = jobs.prepare_base(run, settings)

    def further():
        jobs.further_controlnets(run, settings, pipe)
        for plus in (False, True):
            jobs.further_pix2pixhds(run, settings, plus)
        return {path: path.stat().st_mtime_ns for path in run.glob("*/*_seed5/*/*.png")}

    made = further()
    names = ("controlnet", "pix2pixhd", "pix2pixhd_plus")
    for name in names:
        folder = run / "generated" / f"{name}_seed5" / "images"
        assert len(list(folder.glob("*.png"))) == 4
        assert len(list((run / "synthetic" / f"{name}_seed5" / "images").glob("*.png"))) == 3
    after = work(run, settings)
    assert all(after[kind].items() >= times.items() for kind, times in before.items())
    assert further() == made
    first, other = (
        (run / "models" / name / controlnet.WEIGHTS).read_bytes()
        for name in ("controlnet", "controlnet_seed5")
    )
    assert first != other
