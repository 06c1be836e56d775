"""Cached latents and embeddings: correct, computed once, never outdated."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_base import PROMPTS, SMALL, pairs

from lesionlib.data import augmentation
from lesionlib.data import prompts as words
from lesionlib.data.dataset import Study
from lesionlib.engine import settings as config
from lesionlib.generators import base, latents


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    images, _, prompts = pairs()
    return base.new(images, prompts, tmp_path_factory.mktemp("base"), SMALL, 0)


COPIES = augmentation.orientations(torch.arange(8))[:, None].expand(-1, 24, -1, -1)


def test_latents_are_those_of_the_images_in_eight_orientations(pipe, tmp_path):
    images, masks, _ = pairs()
    z = latents.encode_images(pipe, images, masks, COPIES, tmp_path, batch=7)
    assert isinstance(z, np.memmap) and z.shape == (8, 24, 8, 8, 8)
    turned = [images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]]
    turned += [np.swapaxes(x, 1, 2) for x in turned]
    found = {own.tobytes() for own in z.round(4)}
    assert len(found) == 8
    for own, expected in zip(z[:4], turned, strict=False):
        expected = pipe.vae.encode(base.pixels(expected)).latents
        np.testing.assert_allclose(own, expected * pipe.vae.config.scaling_factor, atol=1e-5)


def test_examples_are_warped_as_their_masks_and_prompts_say(pipe, tmp_path):
    images, masks, prompts = pairs()
    part = Study(images, masks, pd.DataFrame({"prompt": prompts, "diagnosis": "nevus"}), "f")
    settings = config.load(overrides={"augment_variants": 3, "prompt_details": ["position"]})
    data = latents.examples(pipe, part, settings, "base", tmp_path)
    assert data.latents.shape[:2] == data.matrices.shape[:2] == data.prompts.shape == (3, 24)
    for latent, matrices, texts in zip(data.latents, data.matrices, data.prompts, strict=True):
        expected = base.encode(pipe, augmentation.warp_images(images, masks, matrices))
        np.testing.assert_allclose(latent, expected, atol=1e-5)
        for mask, text in zip(augmentation.warp_masks(masks, matrices), texts, strict=True):
            assert words.lesion_position(mask) in text
    assert len(np.unique(data.prompts)) > 3
    off = settings.augmentation.model_copy(update={"trainings": ["controlnet"]})
    plain = settings.model_copy(update={"augmentation": off})
    assert len(latents.examples(pipe, part, plain, "base", tmp_path).latents) == 8


def test_they_are_computed_once_and_again_for_other_images_or_weights(pipe, tmp_path, monkeypatch):
    (images, masks, _), calls, encode = pairs(), [], base.encode
    monkeypatch.setattr(latents, "encode", lambda *a: calls.append(1) or encode(*a))
    first = np.array(latents.encode_images(pipe, images, masks, COPIES, tmp_path))
    before, calls[:] = len(calls), []
    again = latents.encode_images(pipe, images, masks, COPIES, tmp_path)
    assert len(calls) == 1 < before and np.array_equal(first, again)  # one image, for the shape
    latents.encode_images(pipe, images[::-1], masks, COPIES, tmp_path)
    assert len(calls) == 1 + before
    calls.clear()
    settings = SMALL.model_copy(update={"whitening": 0.9})
    other = base.new(images, PROMPTS, tmp_path, settings, 0)
    assert not np.array_equal(latents.encode_images(other, images, masks, COPIES, tmp_path), first)
    assert len(calls) == before and len(list(tmp_path.glob("latents-*.npy"))) == 3


def test_corrupt_latents_are_reported_and_rebuilt(pipe, tmp_path, capsys):
    images, masks, _ = pairs()
    first = np.array(latents.encode_images(pipe, images, masks, COPIES, tmp_path))
    path = next(tmp_path.glob("latents-*.npy"))
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:-9] + b"x" + whole[-8:]):
        path.write_bytes(damaged)
        assert np.array_equal(latents.encode_images(pipe, images, masks, COPIES, tmp_path), first)
        assert f"WARNING: {path}: it is corrupt" in capsys.readouterr().out


def test_an_interrupted_encoding_leaves_nothing_under_the_final_name(pipe, tmp_path, monkeypatch):
    encode, calls = base.encode, []

    def dies(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*given)

    monkeypatch.setattr(latents, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        latents.encode_images(pipe, *pairs()[:2], COPIES, tmp_path, batch=4)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_embeddings_are_kept_once_per_distinct_prompt(pipe, tmp_path):
    said = [PROMPTS[1], "", PROMPTS[0], PROMPTS[1]]
    kept, rows = latents.encode_prompts(pipe, said, tmp_path)
    plain, same_rows = latents.encode_prompts(pipe, said)
    assert kept.shape == (3, 77, 16) and torch.equal(rows, same_rows)
    for prompt, row in zip(said, rows, strict=True):
        words = pipe.text_encoder(base.token_ids(pipe, [prompt]))[0][0]
        np.testing.assert_allclose(kept[row], words, atol=1e-5)
        torch.testing.assert_close(plain[row], words, rtol=0, atol=1e-5)


def test_digest_knows_names_shapes_values_and_not_the_memory_format():
    layer = torch.nn.Conv2d(3, 4, 1)
    first = latents.weights_digest(layer)
    assert latents.weights_digest(layer.to(memory_format=torch.channels_last)) == first
    with torch.no_grad():
        layer.bias[0] += 1
    assert latents.weights_digest(layer) != first
