"""The base, the ControlNet on it, and DDIM: on a tiny base of the same classes."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from small_base import PROMPTS, SMALL, examples, pairs

from lesionlib.engine import training
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT
from lesionlib.engine.settings import Base, ControlNet, Sampling, Training
from lesionlib.generators import base, controlnet, jobs, latents


@pytest.fixture(scope="module")
def study():
    return pairs()


@pytest.fixture(scope="module")
def pipe(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    pipe = base.new(study[0], study[2], folder, SMALL, 0)
    settings = Base(steps=3, batch=4, lr=1e-3, prompt_dropout=0.2)
    return base.train(pipe, examples(pipe, folder), folder, settings, Training(ema=0.0), {})


def train(pipe, study, folder, new=None, record=None, batch=4, **options):
    controlled = controlnet.new(pipe, **(new or {}))
    data = examples(pipe, folder, given=study)
    settings = ControlNet(steps=2, lr=1e-3, prompt_dropout=0.5, decay="constant", batch=batch)
    training, record = Training(ema=0.0, **options), record or {"n": 1}
    return controlnet.train(pipe, controlled, data, folder, settings, training, record)


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


def test_a_decoder_that_sees_neighbours_mends_noisy_latents_and_keeps_clean_ones(study):
    images = base.pixels(study[0])
    alone, near = (base.PatchAutoencoder.fit(images, 8, 4, 0.5, reach, 0.3) for reach in (0, 1))
    noise = 0.3 * torch.randn((24, 8, 8, 8), generator=torch.manual_seed(0))

    def error(vae, noise):
        return (vae.decode(vae.encode(images).latents + noise).sample - images).square().mean()

    harm_alone, harm_near = (error(vae, noise) - error(vae, 0) for vae in (alone, near))
    assert harm_near < 0.8 * harm_alone and error(near, 0) < error(alone, 0)
    full = base.PatchAutoencoder.fit(images, 48, 4, 0.0, 1, 0.001)  # nothing to mend or to add
    assert error(full, 0) < 1e-6


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
    two = Sampling(ddim_steps=2, control_guidance=1.0)
    ours = list(controlnet.sample(pipe, None, masks, PROMPTS, two))
    loaded = base.load(str(tmp_path / "base"))
    theirs = list(controlnet.sample(loaded, None, masks, PROMPTS, two))
    np.testing.assert_array_equal(ours, theirs)


def test_a_base_that_an_earlier_version_saved_still_loads(pipe, tmp_path):
    base.save(pipe, tmp_path / "base")
    index = tmp_path / "base" / "model_index.json"
    now = "lesionlib.generators.base"  # where the autoencoder's class is; once in lesionlib.base
    assert index.read_text().count(now) == 1
    index.write_text(index.read_text().replace(now, "lesionlib.base"))
    (tmp_path / "base" / "model_index.json.json").unlink()
    program = f"from lesionlib.generators import base; base.load({str(tmp_path / 'base')!r})"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)  # one without the module
    masks, two = np.zeros((2, 32, 32), np.uint8), Sampling(ddim_steps=2)
    again = base.load(str(tmp_path / "base"))
    np.testing.assert_array_equal(
        list(controlnet.sample(pipe, None, masks, PROMPTS, two)),
        list(controlnet.sample(again, None, masks, PROMPTS, two)),
    )


def test_a_corrupt_part_of_a_saved_base_is_named(pipe, tmp_path):
    base.save(pipe, tmp_path / "base")
    path = tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert base.corrupt_parts(tmp_path / "base") == [path]
    with pytest.raises(InputError, match=f"{path}: it is corrupt"):
        base.load(str(tmp_path / "base"))


def test_a_digest_of_a_base_covers_weights_vocabulary_and_schedule(pipe, tmp_path):
    base.save(pipe, tmp_path / "base")
    first = base.pipeline_digest(pipe)
    assert base.pipeline_digest(base.load(str(tmp_path / "base"))) == first
    other = base.load(str(tmp_path / "base"))
    with torch.no_grad():
        other.text_encoder.final_layer_norm.bias[0] += 1
    assert base.pipeline_digest(other) != first
    other = base.load(str(tmp_path / "base"))
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config, beta_end=0.013)
    assert base.pipeline_digest(other) != first


def test_a_base_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no Stable Diffusion base could be loaded"):
        base.load(str(tmp_path / "empty"))


def test_controlnet_changes_nothing_at_initialisation(pipe, study):
    controlled = controlnet.new(pipe)
    z, t = torch.randn(2, 8, 8, 8), torch.tensor([10, 900])
    words = latents.encode_prompts(pipe, PROMPTS)[0]
    with torch.no_grad():
        alone = controlnet.ControlledUNet(pipe.unet)(z, t, words)
        assert torch.equal(alone, controlled(z, t, words, controlnet.control_images(study[1][:2])))


DECODER = ("up_blocks", "conv_norm_out", "conv_out")


@pytest.mark.parametrize("locked", [True, False])
def test_training_moves_the_controlnet_and_of_the_base_what_is_not_locked(
    pipe, study, tmp_path, locked
):
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    controlled = train(pipe, study, tmp_path, new={"locked": locked})
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())
    assert controlled.controlnet.controlnet_mid_block.weight.abs().max() > 0
    moved = {k for k, v in controlled.unet.state_dict().items() if not torch.equal(before[k], v)}
    assert all(k.startswith(DECODER) for k in moved) and bool(moved) == (not locked)
    controlnet.save(controlled, tmp_path / "model")
    again = controlnet.load(pipe, tmp_path / "model")
    assert again.digest() == controlled.digest() != controlnet.ControlledUNet(pipe.unet).digest()
    unet = tmp_path / "model" / "unet" / controlnet.WEIGHTS
    assert unet.exists() == (not locked)
    if not locked:
        unet.write_bytes(unet.read_bytes()[:-5])
        with pytest.raises(InputError, match="it is corrupt"):
            controlnet.load(pipe, tmp_path / "model")


def test_control_of_the_middle_only_leaves_the_skip_connections_alone(pipe, study, tmp_path):
    controlled = train(pipe, study, tmp_path, new={"middle_only": True})
    assert all(x.weight.abs().max() == 0 for x in controlled.controlnet.controlnet_down_blocks)
    with torch.no_grad():
        for layer in controlled.controlnet.controlnet_down_blocks:
            layer.weight.fill_(1.0)  # has no say
    z, t = torch.randn(1, 8, 8, 8), torch.tensor([500])
    words, control = latents.encode_prompts(pipe, [""])[0], controlnet.control_images(study[1][:1])
    with torch.no_grad():
        with_middle = controlled(z, t, words, control)
        controlled.controlnet.controlnet_mid_block.weight.zero_()
        controlled.controlnet.controlnet_mid_block.bias.zero_()
        without = controlled(z, t, words, control)
        alone = controlnet.ControlledUNet(pipe.unet)(z, t, words)
    assert not torch.equal(with_middle, alone) and torch.allclose(without, alone, atol=1e-6)
    controlnet.save(controlled, tmp_path / "model")
    assert controlnet.load(pipe, tmp_path / "model").middle_only


def test_a_missing_controlnet_names_the_notebook(pipe, tmp_path):
    with pytest.raises(InputError, match="run notebooks/03_controlnet"):
        controlnet.load(pipe, tmp_path)


TOLERANCE = {"no": dict(rtol=1e-4, atol=1e-6), "bf16": dict(rtol=0.02, atol=5e-3)}


@pytest.mark.parametrize("precision", TOLERANCE)
def test_gradient_checkpointing_changes_no_weight(pipe, study, tmp_path, precision):
    plain, frugal = (
        train(
            pipe, study, tmp_path / str(on), gradient_checkpointing=on, precision=precision
        ).state_dict()
        for on in (False, True)
    )
    for name, weight in plain.items():
        torch.testing.assert_close(frugal[name], weight, **TOLERANCE[precision])


def test_a_batch_of_one_is_a_batch(pipe, study, tmp_path, monkeypatch):
    shapes = []

    class Seeing(controlnet.ControlledUNet):
        def forward(self, noisy, *rest):
            shapes.append(noisy.shape)
            return super().forward(noisy, *rest)

    monkeypatch.setattr(controlnet, "ControlledUNet", Seeing)
    train(pipe, study, tmp_path / "control", batch=1)
    data = examples(pipe, tmp_path, "base")
    forward = base.Denoiser.forward
    monkeypatch.setattr(
        base.Denoiser, "forward", lambda self, x, *a: shapes.append(x.shape) or forward(self, x, *a)
    )
    copied = base.new(study[0], study[2], tmp_path, SMALL, 0)
    settings = Base(steps=1, batch=1, lr=1e-3, prompt_dropout=0.2)
    base.train(copied, data, tmp_path, settings, Training(ema=0.0), {})
    assert shapes == [(1, 8, 8, 8)] * 3


def test_a_finished_training_returns_at_once_and_other_settings_start_afresh(pipe, study, tmp_path):
    train(pipe, study, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controlnet, "noised", None)  # would fail if a step were taken
        train(pipe, study, tmp_path)
        with pytest.raises(TypeError):
            train(pipe, study, tmp_path, record={"n": 2})


def test_min_snr_by_hand(pipe):
    t = torch.tensor([50, 600])
    alpha = pipe.scheduler.alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    predicted, target = (
        torch.zeros(2, 8, 8, 8),
        torch.ones(2, 8, 8, 8) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1),
    )
    loss = base.denoising_loss(pipe.scheduler, predicted, target, t, 5.0)
    weights = [min(s.item(), 5.0) / (s.item() + 1) for s in snr]  # of a velocity
    assert loss.item() == pytest.approx((weights[0] * 1 + weights[1] * 4) / 2, rel=1e-4)
    noise = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="epsilon")
    alpha = noise.alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    weights = [min(s.item(), 5.0) / s.item() for s in snr]
    loss = base.denoising_loss(noise, predicted, target, t, 5.0)
    assert loss.item() == pytest.approx((weights[0] * 1 + weights[1] * 4) / 2, rel=1e-4)
    assert base.denoising_loss(noise, predicted, target, t).item() == 2.5


def test_the_share_of_a_process_is_a_part_of_the_whole_draw(pipe):
    z = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 8, 2, 2)
    whole = base.noised(pipe.scheduler, z, training.generator_at(0, 3), 8, slice(0, 8))
    part = base.noised(pipe.scheduler, z[2:4], training.generator_at(0, 3), 8, slice(2, 4))
    assert all(torch.equal(a[2:4], b) for a, b in zip(whole, part, strict=True))


def images(pipe, controlled, masks, words, **options):
    indices, settings = (
        options.pop("indices", None),
        Sampling(**{"control_guidance": 1.0} | options, ddim_steps=3),
    )
    made = controlnet.sample(pipe, controlled, masks, words, settings, indices=indices)
    return np.stack(list(made))


def test_image_i_depends_on_seed_and_i_alone(pipe, study, tmp_path):
    controlled, masks, words = train(pipe, study, tmp_path), study[1][:5], study[2][:5]
    whole = images(pipe, controlled, masks, words, sample_batch=5).astype(int)
    assert np.abs(whole - images(pipe, controlled, masks, words, sample_batch=2)).max() <= 1
    order = [4, 0, 3]
    some = images(
        pipe, controlled, masks[order], [words[i] for i in order], indices=order, sample_batch=2
    )
    assert np.abs(whole[order] - some).max() <= 1
    assert np.abs(whole - images(pipe, controlled, masks, words, sample_seed=1)).mean() > 1
    noisy = images(pipe, controlled, masks, words, ddim_eta=1.0, sample_batch=5).astype(int)
    assert (
        np.abs(noisy - images(pipe, controlled, masks, words, ddim_eta=1.0, sample_batch=3)).max()
        <= 1
    )
    assert np.abs(noisy - whole).mean() > 1 and (noisy.std(axis=(1, 2, 3)) > 5).all()


def test_an_empty_prompt_costs_no_guidance_pass(pipe, study):
    passes = []

    class Counting(controlnet.ControlledUNet):
        def forward(self, noisy, *rest):
            passes.append(len(noisy))
            return super().forward(noisy, *rest)

    counting = Counting(pipe.unet)
    for words, expected in ((["", ""], 2), (["", PROMPTS[0]], 3), (PROMPTS, 4)):
        passes.clear()
        images(pipe, counting, study[1][:2], words, guidance=4.0)
        assert passes == [expected] * 3
    passes.clear()
    images(pipe, counting, study[1][:2], PROMPTS, guidance=1.0, control_guidance=3.0)
    assert passes == [2] * 3  # the base alone has no control to be guided by


def test_guidance_by_prompt_and_mask_is_the_formula_by_hand():
    def model(z, t, texts, hints, scale):  # what text and control add is known, and their product
        control = torch.zeros(len(z))
        control[: len(hints)] = scale * hints
        return (z.flatten() + t * texts + 100 * control + texts * control)[:, None]

    z, text, hints = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 3.0]), torch.tensor([5.0, 7])
    guided, empty = torch.tensor([1]), torch.tensor([0.0])
    settings = Sampling(guidance=4.0, control_guidance=2.5, conditioning_scale=0.5)
    found = controlnet.guide(model, text, hints, guided, empty, settings)(z, 10)
    row_0 = 1 + 2.5 * 100 * 2.5  # no text; control 5 / 2
    both, no_text, no_control = 2 + 30 + 350 + 3 * 3.5, 2 + 350, 2 + 30
    row_1 = both + 3 * (both - no_text) + 1.5 * (both - no_control)
    assert found.flatten().tolist() == [row_0, row_1]
    off = Sampling(guidance=4.0, control_guidance=1.0)
    found = controlnet.guide(model, text, hints, guided, empty, off)(z, 10).flatten()
    both, no_text = 2 + 30 + 700 + 21, 2 + 700
    assert found.tolist() == [1 + 500, no_text + 4 * (both - no_text)]


def test_rows_beyond_the_control_images_are_the_bases_own(pipe, study, tmp_path):
    controlled = train(pipe, study, tmp_path)
    z, t, words = torch.randn(3, 8, 8, 8), torch.tensor(500), latents.encode_prompts(pipe, [""])[0]
    words, hints = words.expand(3, -1, -1), controlnet.control_images(study[1][:2])
    with torch.no_grad():
        found = controlled(z, t, words, hints)
        with_control = controlled(z[:2], t, words[:2], hints)
        alone = controlnet.ControlledUNet(pipe.unet)(z, t, words)
        no_scale = controlled(z[:2], t, words[:2], hints, 0.0)
    torch.testing.assert_close(found, torch.cat([with_control, alone[2:]]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(no_scale, alone[:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(with_control, alone[:2], atol=1e-4)


GUIDED = dict(guidance=4.0, control_guidance=3.0, conditioning_scale=0.7)


def test_guidance_is_that_of_each_sample_alone(pipe, study, tmp_path):
    masks, mixed = study[1][:2], ["", PROMPTS[1]]
    controlled = train(pipe, study, tmp_path)
    for model, options in ((None, {"guidance": 4.0}), (controlled, GUIDED)):
        together = images(pipe, model, masks, mixed, **options).astype(int)
        apart = [
            images(pipe, model, masks[i : i + 1], mixed[i : i + 1], indices=[i], **options)[0]
            for i in range(2)
        ]
        assert np.abs(together - np.stack(apart)).max() <= 1


def test_the_strength_of_control_is_in_the_key_of_controlled_images_only(pipe, tmp_path):
    masks, controlled = np.zeros((1, 32, 32), np.uint8), controlnet.new(pipe)

    def key(control, **options):
        settings = SimpleNamespace(sampling=Sampling(**options), training=Training())
        painter = jobs.Painter(tmp_path, settings, pipe, controlled)
        return painter.request("synthetic/x", masks, [""], control).artefact.key

    for change in ({"control_guidance": 3.0}, {"conditioning_scale": 1.5}):
        assert key(True, **change) != key(True) and key(False, **change) == key(False)


def test_our_ddim_agrees_with_the_pipeline_of_diffusers(pipe, study, tmp_path):
    controlled, masks, words = train(pipe, study, tmp_path), study[1][:2], study[2][:2]
    torch.nn.init.constant_(controlled.controlnet.controlnet_mid_block.bias, 2.0)  # much control
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    theirs = StableDiffusionControlNetPipeline(
        **parts, controlnet=controlled.controlnet, requires_safety_checker=False
    )
    theirs.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.stack(
        [torch.randn((8, 8, 8), generator=training.generator_at(0, i)) for i in range(2)]
    )
    for guidance, scale in ((1.0, 1.0), (3.0, 1.0), (3.0, 2.0)):
        strength = dict(guidance=guidance, conditioning_scale=scale)
        ours = images(pipe, controlled, masks, words, **strength)
        made = theirs(
            words,
            controlnet.control_images(masks),
            latents=noise,
            num_inference_steps=3,
            guidance_scale=guidance,
            controlnet_conditioning_scale=scale,
            output_type="np",
        ).images
        assert np.abs(ours / 255 - made).mean() < 0.5 / 255
    unscaled = images(pipe, controlled, masks, words, guidance=3.0)
    assert np.abs(unscaled / 255 - made).mean() > 2 / 255  # the scale has an effect


MEAN, STD = 0.7, 0.4  # a Gaussian distribution of data, whose score is known


def exact(scheduler):
    """What an ideal network predicts for x0 ~ N(MEAN, STD^2): noise or velocity."""

    def denoise(x, t):
        a = scheduler.alphas_cumprod[t]
        noise = (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * STD**2 + 1 - a)
        if scheduler.config.prediction_type == "epsilon":
            return noise
        x0 = (STD**2 * a.sqrt() * x + (1 - a) * MEAN) / (a * STD**2 + 1 - a)
        return a.sqrt() * noise - (1 - a).sqrt() * x0

    return denoise


@pytest.fixture
def scheduler():
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def gaussian(scheduler, steps, eta=0.0, n=4):
    z = torch.linspace(-2, 2, n, dtype=torch.float64).view(n, 1, 1, 1)
    draws = [training.generator_at(0, i) for i in range(n)]
    made = controlnet.ddim(exact(scheduler), scheduler, z, draws, steps=steps, eta=eta)
    return z.flatten(), made.flatten()


def test_ddim_is_the_closed_form_of_song_et_al_step_by_step(scheduler):
    z, made = gaussian(scheduler, steps=5)
    times, x = [800, 600, 400, 200, 0], z.numpy()
    alphas = [scheduler.alphas_cumprod[t].item() for t in times] + [1.0]
    for a, b in zip(alphas[:-1], alphas[1:], strict=True):  # equation 12 with sigma = 0
        noise = np.sqrt(1 - a) * (x - np.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)
        x = np.sqrt(b) * (x - np.sqrt(1 - a) * noise) / np.sqrt(a) + np.sqrt(1 - b) * noise
    np.testing.assert_allclose(made.numpy(), x, rtol=1e-5)


def test_ddim_converges_to_the_flow_that_maps_noise_to_the_data(scheduler):
    errors = []
    for steps in (10, 100, 1000):
        z, made = gaussian(scheduler, steps)
        a = scheduler.alphas_cumprod[1000 - 1000 // steps].double()
        flow = MEAN + STD * (z - a.sqrt() * MEAN) / (a * STD**2 + 1 - a).sqrt()
        errors.append((made - flow).abs().max().item())
    assert errors[0] > 4 * errors[1] > 16 * errors[2] and errors[2] < 0.01


@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddim_with_eta_one_draws_from_the_data(scheduler, zero_snr):
    if zero_snr:  # as the small base: its first step starts from nothing but noise
        scheduler = DDIMScheduler.from_config(
            scheduler.config,
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        )
    for steps in (6, 10, 20, 50):  # rounding must not make a root's argument negative
        assert gaussian(scheduler, steps, eta=1.0)[1].isfinite().all()
    _, made = gaussian(scheduler, steps=200, eta=1.0, n=2000)
    assert made.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert made.std().item() == pytest.approx(STD, abs=0.04)


def test_a_prompt_beyond_the_text_encoder_is_refused_not_cut(pipe):
    assert base.token_ids(pipe, ["a nevus", ""]).shape == (2, 77)
    with pytest.raises(InputError, match="tokens, but the text encoder reads 77"):
        base.token_ids(pipe, ["a nevus", "streaks and globules " * 40])
