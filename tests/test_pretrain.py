"""The base that comes with the repository, and the script that makes it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lesionlib.data import phantom
from lesionlib.engine import settings as presets
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json
from lesionlib.engine.settings import Sampling
from lesionlib.generators import base, controlnet
from models import pretrain


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """A tiny stream, painted, in tmp_path/stream; the script's sizes fit it."""
    for name, value in {"SHARD": 6, "FIRST": 1, "EVERY": 2, "HELD_OUT": 8}.items():
        monkeypatch.setattr(pretrain, name, value)
    monkeypatch.setattr(pretrain, "SIZES", {64: (0.4, 4), 32: (0.3, 4), 128: (0.3, 2)})
    monkeypatch.setattr(pretrain, "CONTRAST", {32: (1.0, 6)})
    narrow = pretrain.MODEL.model_copy(update={"channels": [16, 16, 32], "text_width": 64})
    monkeypatch.setattr(pretrain, "MODEL", narrow)
    pretrain.shard.cache_clear()
    for number in range(-1, 2):
        pretrain.make_shard(tmp_path / "stream", number)
    yield tmp_path / "stream"
    pretrain.shard.cache_clear()


def test_no_preset_uses_the_seed_of_the_pretraining(monkeypatch):
    pretrain.check_seeds()
    used = presets.load("quick").data.data_seed
    monkeypatch.setattr(pretrain, "SEED", used)
    with pytest.raises(InputError, match="choose another"):
        pretrain.check_seeds()


def test_the_stream_repeats_and_holds_no_image_of_a_preset(stream):
    images, masks, labels = pretrain.shard(stream, 0)
    again = pretrain.painted(3)
    assert np.array_equal(images[3], again[0]) and np.array_equal(masks[3], again[1])
    assert labels[3]["diagnosis"] == again[2]["diagnosis"]
    held_out = pretrain.shard(stream, -1)[0]
    ours = {image.tobytes() for image in [*images, *held_out]}
    assert len(ours) == len(images) + len(held_out)
    size, seed = pretrain.SIDE, presets.load("quick").data.data_seed
    assert not ours & {phantom.sample(i, size, seed).image.tobytes() for i in range(6)}


def test_a_step_depends_on_its_number_alone_and_prompts_describe_the_warped_lesion(stream):
    sides = set()
    for step in range(6):
        images, texts = pretrain.batch_of(stream, step % 2)
        again = pretrain.batch_of(stream, step % 2)
        assert np.array_equal(images, again[0]) and texts == again[1]
    for step in (0, 1):
        images, texts = pretrain.batch_of(stream, step)
        sides.add(images.shape[1])
        assert len(images) == len(texts) == pretrain.SIZES[images.shape[1]][1]
    assert sides <= set(pretrain.SIZES)
    labels, mask = {"diagnosis": "nevus"}, np.zeros((32, 32), np.uint8)
    mask[2:6, 2:6] = 1
    rng = np.random.default_rng(0)
    said = {pretrain.sentence(labels, mask, rng) for _ in range(60)}
    assert "" in said and any("small" in text for text in said)
    assert any("upper left" in text for text in said) and not any("centre" in text for text in said)


def test_the_text_encoder_learns_which_prompt_is_that_of_an_image_and_is_locked(
    stream, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretrain, "EVERY", 1000)  # no further shards
    pipe, _, record = pretrain.untrained(tmp_path, 2)
    before = base.weights_digest(pipe.text_encoder)
    pretrain.contrast(pipe, tmp_path, 50, record)
    losses = pd.read_csv(tmp_path / "text_encoder" / "log.csv")["loss"]
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]
    assert not any(p.requires_grad for p in pipe.text_encoder.parameters())
    again, _, _ = pretrain.untrained(tmp_path, 2)
    assert base.weights_digest(again.text_encoder) == before
    pretrain.contrast(again, tmp_path, 50, record)  # loads what the first has learnt
    after = base.weights_digest(pipe.text_encoder)
    assert base.weights_digest(again.text_encoder) == after != before


def test_prompt_gain_is_what_the_right_prompt_is_worth(stream, tmp_path):
    pipe, _, _ = pretrain.untrained(tmp_path, 2)
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[1] = 200
    texts = ["a dermoscopic image of a nevus", "a dermoscopic image of a melanoma"]
    codes = pipe.text_encoder(base.token_ids(pipe, texts))[0]
    clean = base.encode(pipe, images)

    def reads(noisy, t, text):  # denoises towards the image that the prompt names, with an error
        named = [int((code - codes).square().flatten(1).sum(1).argmin()) for code in text]
        alpha = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = (noisy - alpha.sqrt() * clean[named]) / (1 - alpha).sqrt()
        return SimpleNamespace(sample=alpha.sqrt() * noise - (1 - alpha).sqrt() * clean[named] + 1)

    def deaf(noisy, t, text):
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    pipe.unet = reads
    assert pretrain.prompt_gain(pipe, images, texts) > 0.1
    assert pretrain.prompt_gain(pipe, images, texts[:1] * 2) == 0
    pipe.unet = deaf
    assert pretrain.prompt_gain(pipe, images, texts) == 0


def test_training_publishes_a_base_that_loads(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "TARGET", tmp_path / "small")
    pipe = pretrain.train(tmp_path, 2)
    pretrain.publish(pipe, tmp_path, 2, 2)
    half, done = pretrain.so_far(tmp_path, 2)
    assert done == 2
    for own, kept in zip(half.unet.parameters(), pipe.unet.parameters(), strict=True):
        assert (own.half() == kept).all()
    card = (tmp_path / "small" / "README.md").read_text()
    assert "no pixel of a patient" in card and "--steps 2" in card and "{" not in card
    assert pd.read_csv(tmp_path / "small" / "validations.csv")["step"].tolist() == [0, 2]
    loaded = base.load(str(tmp_path / "small"))
    assert not base.corrupt_parts(tmp_path / "small")
    want = {k: v.float() for k, v in pipe.unet.state_dict().items()}
    assert all((loaded.unet.state_dict()[k] == v).all() for k, v in want.items())


def test_a_published_base_is_trained_on_with_further_images(stream, tmp_path, monkeypatch):
    start = tmp_path / "small"
    monkeypatch.setattr(pretrain, "TARGET", start)
    pretrain.publish(pretrain.train(tmp_path, 2), tmp_path, 2, 2)
    first, before = base.load(str(start)), (start / "validations.csv").read_text()
    work = tmp_path / "further"
    work.mkdir()
    (work / "stream").symlink_to(stream)
    assert pretrain.begin_of(str(start)) == 2 and list(pretrain.window(3, begin=2)) == [1]
    pipe = pretrain.train(work, 2, str(start))
    half, done = pretrain.so_far(work, 2, str(start))
    assert done == 2
    assert base.weights_digest(half.unet) == base.weights_digest(pipe.unet)
    pretrain.publish(pipe, work, 2, 2, str(start))
    record = read_json(start / "model_index.json.json")
    assert record["steps"] == 4 and [one["steps"] for one in record["trainings"]] == [2, 2]
    assert (start / "validations.csv").read_text().startswith(before)
    assert pd.read_csv(start / "validations.csv")["step"].tolist() == [0, 2, 2, 4]
    assert read_json(start / "unet" / "config.json")["_name_or_path"] == str(start)
    card = (start / "README.md").read_text()
    assert "; then 2 steps by version" in card and "--start models/small`" in card
    after = base.load(str(start))
    assert base.weights_digest(after.unet) != base.weights_digest(first.unet)
    assert base.weights_digest(after.text_encoder) == base.weights_digest(first.text_encoder)


def test_the_committed_base_is_small_intact_and_paints_at_every_size():
    files = [path for path in pretrain.TARGET.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert not base.corrupt_parts(pretrain.TARGET)
    assert {"README.md", "validations.csv"} <= {path.name for path in files}
    pipe = base.load("small")
    for size in (32, 64, 128):
        masks = np.zeros((2, size, size), np.uint8)
        images = np.stack([*controlnet.sample(pipe, None, masks, ["", ""], Sampling(ddim_steps=2))])
        assert images.shape == (2, size, size, 3) and images.std() > 5
    assert pipe.unet.dtype == pipe.vae.dtype and str(pipe.unet.dtype) == "torch.float32"
