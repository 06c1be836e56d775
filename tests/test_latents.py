"""Cached latents and embeddings: correct, computed once, never outdated."""

import numpy as np
import pytest
import torch
from small_base import PROMPTS, SMALL, pairs

from lesionlib.generators import base, latents


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    images, _, prompts = pairs()
    return base.new(images, prompts, tmp_path_factory.mktemp("base"), SMALL, 0)


def test_latents_are_those_of_the_images_and_their_flips(pipe, tmp_path):
    images = pairs()[0]
    z = latents.encode_images(pipe, images, tmp_path, batch=7)
    assert isinstance(z, np.memmap) and z.shape == (4, 24, 8, 8, 8)
    flips = [images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]]
    for own, flipped in zip(z, flips, strict=True):
        expected = pipe.vae.encode(base.pixels(flipped)).latents * pipe.vae.config.scaling_factor
        np.testing.assert_allclose(own, expected, atol=1e-5)


def test_they_are_computed_once_and_again_for_other_images_or_weights(pipe, tmp_path, monkeypatch):
    images, calls, encode = pairs()[0], [], base.encode
    monkeypatch.setattr(latents, "encode", lambda *a: calls.append(1) or encode(*a))
    first = np.array(latents.encode_images(pipe, images, tmp_path))
    before, calls[:] = len(calls), []
    again = latents.encode_images(pipe, images, tmp_path)
    assert len(calls) == 1 < before and np.array_equal(first, again)  # one image, for the shape
    latents.encode_images(pipe, images[::-1], tmp_path)
    assert len(calls) == 1 + before
    calls.clear()
    settings = SMALL.model_copy(update={"whitening": 0.9})
    other = base.new(images, PROMPTS, tmp_path, settings, 0)
    assert not np.array_equal(latents.encode_images(other, images, tmp_path), first)
    assert len(calls) == before and len(list(tmp_path.glob("latents-*.npy"))) == 3


def test_corrupt_latents_are_reported_and_rebuilt(pipe, tmp_path, capsys):
    images = pairs()[0]
    first = np.array(latents.encode_images(pipe, images, tmp_path))
    path = next(tmp_path.glob("latents-*.npy"))
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:-9] + b"x" + whole[-8:]):
        path.write_bytes(damaged)
        assert np.array_equal(latents.encode_images(pipe, images, tmp_path), first)
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
        latents.encode_images(pipe, pairs()[0], tmp_path, batch=4)
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
