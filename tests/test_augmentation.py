"""Paired geometric augmentation: image and mask move together, exactly where they only turn."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_base import pairs

from lesionlib.data import augmentation
from lesionlib.engine.settings import Augmentation, Data

SETTINGS = Augmentation()


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_orientations_are_exact_and_eight():
    images, masks, _ = pairs(1)
    matrices = augmentation.orientations(torch.arange(8))
    turned = augmentation.warp_images(images.repeat(8, axis=0), matrices)
    image = images[0]
    expected = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    expected += [np.swapaxes(one, 0, 1) for one in expected]
    assert {one.tobytes() for one in turned} == {one.tobytes() for one in map(np.array, expected)}
    assert np.array_equal(turned[0], image)
    masks = augmentation.warp_masks(masks.repeat(8, axis=0), matrices)
    assert (masks.sum((1, 2)) == masks[0].sum()).all()


@pytest.mark.parametrize("size", [32, 64])
def test_a_lesion_moves_grows_and_turns_as_the_matrix_says(size):
    mask = np.zeros((1, size, size), np.uint8)
    part = slice(size // 2 - size // 8, size // 2 + size // 8)
    mask[:, part, part] = 1
    matrix = torch.tensor([[[1.25, 0, -0.25], [0, 1.25, 0]]])  # 0.8 as large, a tenth to the right
    found = augmentation.warp_masks(mask, matrix)[0]
    assert found.sum() == pytest.approx(mask.sum() * 0.64, rel=0.2)
    row, column = (np.argwhere(found).mean(0) + 0.5) / size
    assert row == pytest.approx(0.5, abs=0.02) and column == pytest.approx(0.6, abs=0.02)


def test_image_and_mask_move_together():
    _, masks, _ = pairs(200)
    images = np.where(masks[..., None] > 0, 40, 220).repeat(3, axis=3).astype(np.uint8)
    matrices = augmentation.drawn(len(masks), SETTINGS, draw())
    dark = augmentation.warp_images(images, matrices)[..., 0] < 130
    moved = augmentation.warp_masks(masks, matrices)
    assert (dark == moved).mean() > 0.999
    assert (moved != masks).any((1, 2)).mean() > 0.9


def test_the_share_the_scale_and_the_shift_are_those_of_the_settings():
    def warped(**changes):
        settings = SETTINGS.model_copy(update=changes)
        return augmentation.drawn(2000, settings, draw())

    linear = warped()[:, :, :2]
    size = torch.linalg.det(linear).abs().rsqrt()  # factor on the lesion's size
    mere = torch.isclose(size, torch.ones(1), atol=1e-5)
    assert mere.float().mean() == pytest.approx(0.3, abs=0.04)
    assert size[~mere].min() >= 0.45 - 1e-4 and size[~mere].max() <= 1.25 + 1e-4
    assert size[~mere].min() < 0.5 and size[~mere].max() > 1.2
    none = warped(share=0.0)
    assert torch.equal(
        none, augmentation.orientations(torch.randint(0, 8, (2000,), generator=draw()))
    )
    still = warped(share=1.0, scale=[1.0, 1.0], shift=0.25)
    centre = torch.linalg.solve(still[:, :, :2], -still[:, :, 2:])[:, :, 0]  # of the lesion
    assert centre.abs().max() > 0.45 and centre.abs().max() < 0.5 * 2**0.5 + 1e-4


def test_a_single_lesion_is_preferred():
    _, masks, _ = pairs(100)

    def regions(matrices):
        return np.array(
            [augmentation._regions(m) for m in augmentation.warp_masks(masks, matrices)]
        )

    once, chosen = (
        f(d)
        for f, d in (
            (lambda d: regions(augmentation.drawn(100, SETTINGS, d)), draw()),
            (lambda d: regions(augmentation.single(masks, SETTINGS, d)), draw()),
        )
    )
    assert (chosen == 1).mean() > (once == 1).mean() + 0.2
    assert torch.equal(
        augmentation.single(masks, SETTINGS, draw()), augmentation.single(masks, SETTINGS, draw())
    )


def test_prompts_describe_the_copy():
    _, masks, _ = pairs(8)
    table = pd.DataFrame({"prompt": ["a dermoscopic image of a nevus"] * 8, "diagnosis": "nevus"})
    matrices = augmentation.variants(masks, SETTINGS, "base")
    plain = augmentation.described(table, masks, matrices, Data())
    assert plain.shape == (SETTINGS.variants, 8) and (plain == table["prompt"][0]).all()
    sizes = augmentation.described(table, masks, matrices, Data(prompt_details=["size"]))
    for copies, texts in zip(matrices, sizes, strict=True):
        for mask, text in zip(augmentation.warp_masks(masks, copies), texts, strict=True):
            assert text.endswith("medium-sized") == (0.1 <= mask.mean() < 0.3)
