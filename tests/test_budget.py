"""The budget: what each generator sees, and the steps in which Pix2PixHD sees as much."""

import pytest

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.generators import budget


def test_a_locked_base_costs_nothing_and_accumulated_gradients_count():
    locked = config.load(overrides={"controlnet_steps": 10, "controlnet_accumulate": 3})
    assert budget.diffusion_images(locked) == {"base": 0, "controlnet": 10 * 32 * 3}
    own = {"base_finetune": True, "base_steps": 7, "base_batch": 16}
    trained = config.load(overrides=own | {"controlnet_steps": 10})
    assert budget.diffusion_images(trained) == {"base": 7 * 16, "controlnet": 320}


def test_with_no_steps_pix2pixhd_sees_as_many_images():
    overrides = {"controlnet_steps": 10, "pix2pixhd_steps": 0, "pix2pixhd_batch": 8}
    settings = config.load(overrides=overrides)
    assert budget.pix2pixhd_settings(settings).steps == 40
    assert set(budget.table(settings)["images seen"]) == {320}
    fine = {"pix2pixhd_enhancers": 1, "pix2pixhd_fine_steps": 15}
    settings = config.load(overrides=overrides | fine)
    assert budget.pix2pixhd_settings(settings).steps == 25  # and 15 of the finer generator
    assert set(budget.table(settings)["images seen"]) == {320}
    settings = config.load(overrides=overrides | fine | {"pix2pixhd_fine_steps": 40})
    with pytest.raises(InputError, match="lower pix2pixhd_fine_steps"):
        budget.pix2pixhd_settings(settings)


def test_named_steps_are_kept():
    settings = config.load(overrides={"pix2pixhd_steps": 11})
    assert budget.pix2pixhd_settings(settings) is settings.pix2pixhd
    assert budget.table(settings)["steps"].tolist() == [settings.controlnet.steps, 11, 11]
