"""A ControlNet leaves a run for plain diffusers, and somebody else's enters one."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from small_run import SETTINGS, finish, write_data

import lesionlib.generators.base  # noqa: F401 - the one import that the small base needs
from lesionlib.data import dataset
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import Log, read_json, write_json
from lesionlib.generators import budget, controlnet, external_generators, jobs
from lesionlib.workflow import cards, cli, export, prefetch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "secret place"
    with pytest.MonkeyPatch.context() as monkeypatch:
        finish(folder, monkeypatch)
        yield folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "models"
    assert cli.main(["--export", str(run), "--out", str(out)]) == 0
    return out


def test_plain_diffusers_loads_what_was_exported_and_paints_the_same(run, exported):
    from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline

    control = ControlNetModel.from_pretrained(exported / "controlnet")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        exported / "base", controlnet=control, safety_checker=None
    )
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    part, prompt = dataset.load(run).part("S-test"), "a dermoscopic image of a nevus"
    changed = {"guidance": 3.0, "control_guidance": 1.0, "conditioning_scale": 0.8, "ddim_steps": 4}
    own = jobs.load_base(run, SETTINGS)
    controlled = controlnet.load(own, run / "models" / "controlnet")
    painter = jobs.Painter(run, SETTINGS, own, controlled)
    ours = next(painter.sample(part.masks[:1], [prompt], [7], **changed))
    shape = (1, own.unet.config.in_channels, 8, 8)
    noise = torch.randn(shape[1:], generator=controlnet.generator_at(0, 7))[None]
    theirs = pipe(
        prompt,
        image=Image.fromarray(part.masks[0] * 255),
        latents=noise,
        num_inference_steps=4,
        guidance_scale=3.0,
        controlnet_conditioning_scale=0.8,
    ).images[0]
    assert np.abs(np.int16(theirs) - np.int16(ours)).max() <= 1
    alone = next(painter.sample(part.masks[:1], [prompt], [7], control=False, **changed))
    assert np.abs(np.int16(alone) - np.int16(ours)).max() > 5  # the ControlNet does something


def test_cards_have_the_form_of_the_hub_and_name_no_place(run, exported):
    for name in ("controlnet", "base"):
        text = (exported / name / "README.md").read_text()
        assert ("3 steps of 4 images" in text) == (name == "controlnet")
        front = yaml.safe_load(text.split("---")[1])
        assert front["library_name"] == "diffusers" and "controlnet" in front["tags"]
        assert "16 procedural images. Licence: MIT" in text
        assert "import lesionlib.generators.base" in text
    for path in exported.rglob("*"):
        assert not path.is_file() or b"secret place" not in path.read_bytes(), path
    assert not (exported / "controlnet" / "unet").exists()  # it is in the base


def test_a_base_from_the_hub_is_named_and_not_copied(run, exported):
    hub = SETTINGS.base.model_copy(update={"model": "owner/sd"})
    locked = SETTINGS.controlnet.model_copy(update={"locked": True})
    settings = SETTINGS.model_copy(update={"base": hub, "controlnet": locked})
    assert not export.needs_base(settings) and export.needs_base(SETTINGS)
    text = cards.usage(settings, "owner/sd")
    assert '"owner/sd", controlnet=control' in text and "lesionlib" not in text


def test_what_is_not_empty_or_not_finished_is_refused(run, exported, tmp_path):
    with pytest.raises(InputError, match="it is not empty"):
        export.export(run, exported)
    with pytest.raises(InputError, match="there is no finished run"):
        export.export(tmp_path, tmp_path / "out")


def test_a_run_of_real_images_says_what_its_models_have_seen(run, tmp_path):
    flat = SETTINGS.flat() | {"source": "isic"}
    write_json(run / "provenance.json", {"settings": flat})
    try:
        export.export(run, tmp_path / "out")
    finally:
        write_json(run / "provenance.json", {"settings": SETTINGS.flat()})
    ids = pd.read_csv(tmp_path / "out" / "controlnet" / "trained_on.csv")["id"]
    assert ids.tolist() == [f"i{k:02d}" for k in range(16)]
    assert "ISIC 2018 Task 1" in (tmp_path / "out" / "base" / "README.md").read_text()


@pytest.fixture
def other(tmp_path, exported):
    """A run that evaluates the exported ControlNet, and its settings."""
    write_data(tmp_path)
    weights = tmp_path / "models" / "reference_segmenter" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"none")
    base = SETTINGS.base.model_copy(update={"model": str(exported / "base")})
    given = {"model": str(exported / "controlnet"), "locked": True}
    own = SETTINGS.controlnet.model_copy(update=given)
    return tmp_path, SETTINGS.model_copy(update={"base": base, "controlnet": own})


def test_a_given_controlnet_is_validated_and_not_trained(run, other, monkeypatch):
    folder, settings = other
    monkeypatch.setattr(controlnet, "train", lambda *args, **options: 1 / 0)
    training = jobs.ControlNetTraining(folder, settings)
    controlled = training.complete()
    assert [row["step"] for row in Log.read(training.log.path)] == ["0"]
    pipe = jobs.load_base(run, SETTINGS)
    assert controlled.digest() == controlnet.load(pipe, run / "models" / "controlnet").digest()
    saved = folder / "models" / "controlnet" / controlnet.WEIGHTS
    before = saved.stat().st_mtime_ns
    assert not (saved.parent / "unet").exists()
    jobs.ControlNetTraining(folder, settings).complete()
    assert saved.stat().st_mtime_ns == before
    assert budget.diffusion_images(settings) == {"base": 0, "controlnet": 0}
    assert "ControlNet" not in set(budget.table(settings)["training"])


def test_a_given_controlnet_must_not_have_seen_s(other, exported, monkeypatch):
    folder, settings = other
    study = dataset.load(folder)
    own = settings.controlnet.model_copy(update={"model": str(folder / "given")})
    settings = settings.model_copy(update={"controlnet": own})
    made = folder / "synthetic" / "controlnet" / "images"
    made.mkdir(parents=True)
    Image.fromarray(study.part("S-test").images[1]).save(made / "000000.png")
    with pytest.raises(InputError, match=r"000000\.png: it shows a picture of S"):
        jobs.check_given(folder, settings, study)
    (folder / "given").mkdir()
    (folder / "given" / external_generators.TRAINED_ON).write_text("id\ni03\n")
    jobs.check_given(folder, settings, study)  # the list decides, see `leakage`
    assert jobs.trained_on(settings, study) == {"trained_on": ["i03"]}
    assert len(jobs.trained_on(SETTINGS, study)["trained_on"]) == 16


def test_a_controlnet_for_another_base_is_refused(other, exported, tmp_path):
    pipe = jobs.load_base(*other)
    with pytest.raises(InputError, match="no ControlNet is there"):
        controlnet.given(pipe, str(tmp_path / "models"))
    config = read_json(exported / "controlnet" / "config.json") | {"cross_attention_dim": 32}
    control = controlnet.ControlNetModel.from_config(config)
    control.save_pretrained(tmp_path / "wide")
    with pytest.raises(InputError, match="for another base: cross_attention_dim 32, not 16"):
        controlnet.given(pipe, str(tmp_path / "wide"))


@pytest.mark.parametrize(
    "more, said",
    [
        (["base_finetune=true"], "base_finetune"),
        (["base_model="], "base_model"),
        (["generator_seeds=[0,1]"], "generator_seeds"),
        (["controlnet_locked=false"], "controlnet_locked"),
    ],
)
def test_what_contradicts_a_given_controlnet_is_an_error(more, said, capsys):
    given = ["--preset", "smoke", "--controlnet", "owner/name", "--config", *more]
    assert cli.main(given) == 2
    assert f"setting '{said}'" in capsys.readouterr().err


def test_the_command_line_takes_both_parts_of_an_export(exported):
    def told(*words):
        return cli.overrides(cli.parser().parse_args(["--controlnet", *words]))

    pair = {"controlnet_model": str(exported / "controlnet"), "base_model": str(exported / "base")}
    assert told(str(exported)) == pair | {"base_finetune": False}
    assert told(pair["controlnet_model"]) == {"controlnet_model": pair["controlnet_model"]}
    assert told("owner/name") == {"controlnet_model": "owner/name"}
    settings = cli.config.load("smoke", told("owner/name"))
    assert [f.__name__ for f, _ in prefetch.downloads(settings)] == ["fetch_controlnet"]
    assert json.loads(json.dumps(settings.overrides())) == {"controlnet_model": "owner/name"}
