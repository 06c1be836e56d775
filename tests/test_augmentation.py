"""Paired geometric augmentation: image and mask move together, exactly where they only turn."""

import cv2
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
    many = images.repeat(8, axis=0), masks.repeat(8, axis=0)
    turned = augmentation.warp_images(*many, matrices)
    image = images[0]
    expected = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    expected += [np.swapaxes(one, 0, 1) for one in expected]
    assert {one.tobytes() for one in turned} == {one.tobytes() for one in map(np.array, expected)}
    assert np.array_equal(turned[0], image)
    turned = augmentation.warp_masks(many[1], matrices)
    assert (turned.sum((1, 2)) == masks[0].sum()).all()


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
    dark = augmentation.warp_images(images, masks, matrices)[..., 0] < 130
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


def test_a_copy_of_one_lesion_shows_one_lesion():
    images, masks, _ = pairs(100)
    cut = augmentation.cut_off(images, masks)
    matrices = augmentation.copied(masks, cut, SETTINGS, draw())
    assert torch.equal(matrices, augmentation.copied(masks, cut, SETTINGS, draw()))
    merely = augmentation.oriented(matrices).numpy()
    assert merely[cut].all() and 0.6 < (~merely[~cut]).mean() < 0.75  # the share is 0.7
    flat = np.where(masks[..., None] > 0, 40, 220).repeat(3, axis=3).astype(np.uint8)
    for copy, mask in zip(
        augmentation.warp_images(flat, masks, matrices),
        augmentation.warp_masks(masks, matrices),
        strict=True,
    ):
        assert regions(mask) == 1
        assert regions(copy[..., 0] < 130) == 1


def regions(mask) -> int:
    return cv2.connectedComponents(np.uint8(mask))[0] - 1


def scene(size: int, field: float = 2.0, place: float = 0.5):
    """A picture of light skin with one dark lesion, black outside a round field of view."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    mask = np.uint8(np.hypot(y - place, x - place) < 0.2)
    image = np.where(mask, 60, np.where(np.hypot(y - 0.5, x - 0.5) < field, 200, 5))
    return image[None, ..., None].repeat(3, axis=3).astype(np.uint8), mask[None]


@pytest.mark.parametrize("size", [32, 64, 256])
def test_pictures_whose_border_is_not_all_skin_are_only_oriented(size):
    assert not augmentation.cut_off(*scene(size))
    assert augmentation.cut_off(*scene(size, field=0.55))  # dark corners
    assert augmentation.cut_off(*scene(size, place=0.15))  # a lesion at the border
    image, mask = scene(size)
    assert augmentation.cut_off(image * 0, mask) and augmentation.cut_off(image, mask * 0 + 1)
    matrices = augmentation.copied(
        mask, np.array([True]), SETTINGS.model_copy(update={"share": 1.0}), draw()
    )
    assert augmentation.oriented(matrices).all()


def test_a_lesion_is_not_warped_out_of_its_picture():
    _, masks = scene(64, place=0.2)
    masks = masks.repeat(200, axis=0)
    far = SETTINGS.model_copy(update={"shift": 0.9, "share": 1.0})
    merely = augmentation.oriented(
        augmentation.copied(masks, np.zeros(200, bool), far, draw())
    ).numpy()
    assert 0.3 < merely.mean() < 0.9


@pytest.mark.parametrize("size", [32, 64, 256])
def test_skin_goes_on_beyond_a_picture_without_frame_and_lesion(size):
    image, mask = scene(size)
    image[:, 0] = image[:, :, -1] = 0  # a frame of one pixel
    half = torch.tensor([[[2.0, 0, -0.6], [0, 2.0, 0.4]]])  # half as large, shifted
    copy = augmentation.warp_images(image, mask, half)[0, ..., 0]
    moved = augmentation.warp_masks(mask, half)[0]
    near = np.ones((3, 3), np.uint8)
    for part, grey in ((1 - cv2.dilate(moved, near), 200), (cv2.erode(moved, near), 60)):
        assert part.any() and np.abs(copy[part > 0].astype(int) - grey).max() <= 3
    assert np.array_equal(augmentation.skin(image, mask)[0, size // 8, size // 8], [200] * 3)


def test_prompts_describe_the_copy():
    images, masks, _ = pairs(8)
    table = pd.DataFrame({"prompt": ["a dermoscopic image of a nevus"] * 8, "diagnosis": "nevus"})
    matrices = augmentation.variants(images, masks, SETTINGS, "base")
    plain = augmentation.described(table, masks, matrices, Data())
    assert plain.shape == (SETTINGS.variants, 8) and (plain == table["prompt"][0]).all()
    sizes = augmentation.described(table, masks, matrices, Data(prompt_details=["size"]))
    for copies, texts in zip(matrices, sizes, strict=True):
        for mask, text in zip(augmentation.warp_masks(masks, copies), texts, strict=True):
            assert text.endswith("medium-sized") == (0.1 <= mask.mean() < 0.3)
