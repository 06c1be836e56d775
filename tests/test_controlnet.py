"""The base, the ControlNet on it, and DDIM: on a tiny base of the same classes."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline

from lesionlib import base, controlnet, training
from lesionlib.errors import InputError

PROMPTS = ["a dermoscopic image of a nevus", "a dermoscopic image of a melanoma with streaks"]


@pytest.fixture(scope="module")
def study():
    """24 images of 32 px with a dark square, and its masks."""
    rng = np.random.default_rng(0)
    images = rng.integers(150, 250, (24, 32, 32, 3), dtype=np.uint8)
    masks = np.zeros((24, 32, 32), np.uint8)
    for i in range(24):
        top, left = rng.integers(4, 14, 2)
        masks[i, top:top + 12, left:left + 12] = 1
    images[masks == 1] //= 3
    return images, masks, (PROMPTS * 12)


@pytest.fixture(scope="module")
def pipe(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    pipe = base.new(study[0], study[2], folder, latent_channels=8, patch=4, whitening=0.5,
                    channels=[16, 32], attention=[False, True], text_width=16, seed=0)
    return base.train(pipe, study[0], study[2], folder, steps=3, batch=4, lr=1e-3,
                      prompt_dropout=0.2, seed=0, record={})


def train(pipe, study, folder, steps, save_every=100, record=None):
    model = controlnet.new(pipe)
    return controlnet.train(pipe, model, *study, folder, steps=steps, batch=4, lr=1e-3,
                            prompt_dropout=0.5, seed=0, record=record or {"n": 1},
                            save_every=save_every, decay="constant")


def test_autoencoder_keeps_what_its_components_span(study):
    images = base.pixels(study[0])
    full = base.PatchAutoencoder.fit(images, latent_channels=48, patch=4, whitening=1.0)
    z = full.encode(images).latents
    assert z.shape == (24, 48, 8, 8)
    torch.testing.assert_close(full.decode(z).sample, images, rtol=0, atol=1e-4)
    few = [base.PatchAutoencoder.fit(images, n, 4, 0.5) for n in (2, 8, 32)]
    errors = [(m.decode(m.encode(images).latents).sample - images).square().mean() for m in few]
    assert errors[0] > errors[1] > errors[2]
    assert few[1].encode(images).latents.square().mean() == pytest.approx(1, abs=0.1)


def test_tokenizer_knows_the_prompts_and_survives_any_word(tmp_path):
    tokenizer = base.tokenizer_for(PROMPTS, tmp_path)
    texts = [*PROMPTS, "", "Ünknown wörds 7"]
    ids = tokenizer(texts, padding="max_length", max_length=77).input_ids
    assert {len(row) for row in ids} == {77} and len({tuple(row) for row in ids}) == 4
    assert all(row[0] == tokenizer.bos_token_id for row in ids)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == PROMPTS[0]


def test_saved_base_loads_in_diffusers_and_paints_the_same(pipe, tmp_path):
    base.save(pipe, tmp_path / "base", preset="test")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    assert type(again.vae).__name__ == "PatchAutoencoder"
    masks = np.zeros((2, 32, 32), np.uint8)
    ours = list(controlnet.sample(pipe, None, masks, PROMPTS, steps=2))
    loaded = base.load(str(tmp_path / "base"))
    theirs = list(controlnet.sample(loaded, None, masks, PROMPTS, steps=2))
    np.testing.assert_array_equal(ours, theirs)


def test_a_base_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no Stable Diffusion base could be loaded"):
        base.load(str(tmp_path / "empty"))


def test_controlnet_changes_nothing_at_initialisation(pipe, study):
    model = controlnet.new(pipe)
    z, t = torch.randn(2, 8, 8, 8), torch.tensor([10, 900])
    words = controlnet.encode_prompts(pipe, PROMPTS)[0]
    with torch.no_grad():
        alone = controlnet.predict(pipe, None, z, t, words, None)
        steered = controlnet.predict(pipe, model, z, t, words, controlnet.hint(study[1][:2]))
    assert torch.equal(alone, steered)


def test_training_moves_the_controlnet_and_leaves_the_base_locked(pipe, study, tmp_path):
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    model = train(pipe, study, tmp_path, steps=3)
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())
    assert model.controlnet_mid_block.weight.abs().max() > 0


def test_a_resumed_training_ends_with_the_same_weights(pipe, study, tmp_path):
    whole = train(pipe, study, tmp_path / "whole", steps=4).state_dict()
    save, half = training.save_checkpoint, tmp_path / "half"

    def stop_after_two(path, **state):
        save(path, **state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_checkpoint", stop_after_two)
        train(pipe, study, half, steps=4, save_every=2)
    resumed = train(pipe, study, half, steps=4, save_every=2).state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_finished_training_returns_at_once_and_other_settings_start_afresh(pipe, study, tmp_path):
    train(pipe, study, tmp_path, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controlnet, "predict", None)  # would fail if a step were taken
        train(pipe, study, tmp_path, steps=2)
        with pytest.raises(TypeError):
            train(pipe, study, tmp_path, steps=2, record={"n": 2})


def test_image_i_depends_on_seed_and_i_alone(pipe, study, tmp_path):
    model = train(pipe, study, tmp_path, steps=2)
    masks, words = study[1][:5], study[2][:5]
    whole = np.stack(list(controlnet.sample(pipe, model, masks, words, steps=3, batch=5)))
    single = np.stack(list(controlnet.sample(pipe, model, masks, words, steps=3, batch=2)))
    tail = np.stack(list(controlnet.sample(pipe, model, masks[3:], words[3:], first=3, steps=3)))
    assert np.abs(whole.astype(int) - single).max() <= 1
    assert np.abs(whole[3:].astype(int) - tail).max() <= 1
    other = np.stack(list(controlnet.sample(pipe, model, masks, words, steps=3, seed=1)))
    assert np.abs(whole.astype(int) - other).mean() > 1


def test_our_ddim_agrees_with_the_pipeline_of_diffusers(pipe, study, tmp_path):
    model = train(pipe, study, tmp_path, steps=2)
    masks, words = study[1][:2], study[2][:2]
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    theirs = StableDiffusionControlNetPipeline(
        **parts, controlnet=model, requires_safety_checker=False)
    theirs.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    for guidance in (1.0, 3.0):
        ours = np.stack(list(controlnet.sample(pipe, model, masks, words, steps=4,
                                               guidance=guidance)))
        noise = torch.stack([torch.randn((8, 8, 8), generator=training.generator_at(0, i))
                             for i in range(2)])
        images = theirs(words, controlnet.hint(masks), latents=noise, num_inference_steps=4,
                        guidance_scale=guidance, output_type="np").images
        assert np.abs(ours / 255 - images).mean() < 2 / 255


def test_batches_visit_every_image_once_per_epoch():
    rows = torch.cat([training.batch_at(step, 4, 10, seed=0) for step in range(5)])
    assert sorted(rows[:10].tolist()) == list(range(10)) == sorted(rows[10:].tolist())
    assert rows[:10].tolist() != rows[10:].tolist()


def test_learning_rate_by_hand():
    rates = [training.learning_rate(s, 100, 1.0, 10, "cosine") for s in (0, 9, 50, 99)]
    assert rates[0] == pytest.approx(0.1) and rates[2] == pytest.approx(0.5)
    assert rates[1] > 0.97 and rates[3] < 0.001
    assert training.learning_rate(99, 100, 2.0, 10, "constant") == 2.0


def test_a_prompt_beyond_the_text_encoder_is_refused_not_cut(pipe):
    assert base.token_ids(pipe, ["a nevus", ""]).shape == (2, 77)
    with pytest.raises(InputError, match="tokens, but the text encoder reads 77"):
        base.token_ids(pipe, ["a nevus", "streaks and globules " * 40])
