"""The grid of Table 2, its arms beyond the paper, and its jobs."""

import pytest

from lesionlib.engine import settings as config
from lesionlib.masks import recipe
from lesionlib.segmentation.grid import (
    ARMS,
    MODES,
    Cell,
    control_sets,
    grid,
    jobs,
    planned_cells,
    synthetic_set,
)


def cells_of(arms=("table",), networks=("unet", "dcsaunet"), seeds=(0, 1, 2), amounts=(1, 2, 3)):
    return grid(
        networks, ["unet"], ["controlnet", "pix2pixhd"], amounts, seeds, arms, [10, 50], "paper"
    )


def test_the_papers_table_is_complete_and_in_order():
    cells = cells_of(amounts=(100, 300, 500))
    assert len(cells) == len(set(cells)) == 2 * (1 + 2 * 3) * 3 == 42
    assert [cell.id for cell in cells[:4]] == [
        "unet-real-0-share100-epochs-seed0",
        "unet-real-0-share100-epochs-seed1",
        "unet-real-0-share100-epochs-seed2",
        "unet-controlnet-100-share100-epochs-seed0",
    ]
    assert cells[20].id == "unet-pix2pixhd-500-share100-epochs-seed2"
    assert cells[21].id == "dcsaunet-real-0-share100-epochs-seed0"


def test_every_arm_adds_what_it_says_with_equal_steps_and_for_the_networks_of_controls():
    table = set(cells_of(["table", "steps"]))
    assert len(table) == 2 * 42
    added = {arm: [c for c in cells_of(["table", "steps", arm]) if c not in table] for arm in ARMS}
    assert {cell.network for arm in added.values() for cell in arm} == {"unet"}
    assert {cell.schedule for arm in added.values() for cell in arm} == {"steps"}
    named = {arm: {(c.method, c.amount, c.share) for c in some} for arm, some in added.items()}
    assert named == {
        "table": set(),
        "steps": set(),
        "classical": {("classical", 0, 100)},
        "plus": set(),
        "synthetic_only": {("controlnet", 3, 0), ("pix2pixhd", 3, 0)},
        "masks": {("controlnet_real", 1, 100), ("controlnet_fitted", 1, 100)},
        "prompts": {("controlnet_empty", 1, 100)},
        "filtered": {("controlnet_best", 1, 100), ("pix2pixhd_best", 1, 100)},
        "base": {("base", 1, 100)},
        "low_data": {
            (m, a, share)
            for share in (10, 50)
            for m, a in (("real", 0), ("controlnet", 1), ("pix2pixhd", 1))
        },
    }


def test_controls_follow_the_papers_schedule_if_there_is_no_other():
    assert {cell.schedule for cell in cells_of(["table", "classical"])} == {"epochs"}


def test_sets_for_controls_are_those_of_the_other_mask_modes():
    assert MODES == recipe.MODES
    assert control_sets(["masks"], "fitted") == ["controlnet_paper", "controlnet_real"]
    assert control_sets(["table", "base", "prompts"], "paper") == ["controlnet_empty", "base"]
    assert [synthetic_set(m) for m in ("real", "classical", "base", "pix2pixhd_best", "gan")] == [
        "",
        "",
        "base",
        "pix2pixhd",
        "gan",
    ]


def test_pix2pixhd_plus_is_in_table_2_with_its_arm_only():
    def methods(arms):
        cells = planned_cells(config.load("quick", {"arms": arms}))
        return {cell.method for cell in cells}

    assert methods(["table"]) == {"real", "controlnet", "pix2pixhd"}
    assert methods(["table", "plus"]) == {"real", "controlnet", "pix2pixhd", "pix2pixhd_plus"}


def test_an_external_generator_is_one_more_method_in_every_arm():
    settings = config.load("smoke", {"external_generators": {"gan": "/x"}})
    own = [cell for cell in planned_cells(settings) if synthetic_set(cell.method) == "gan"]
    assert {(c.method, c.share > 0) for c in own} == {
        ("gan", True),
        ("gan", False),
        ("gan_best", True),
    }
    assert len(planned_cells(settings)) - len(own) == len(planned_cells(config.load("smoke")))


def test_jobs_share_the_grid_evenly_and_wait_for_one_generator_only():
    cells = cells_of()
    shares = jobs(cells, 9)
    assert [(needed, len(names)) for needed, names in shares] == [
        ([], 6),
        (["controlnet"], 9),
        (["controlnet"], 9),
        (["pix2pixhd"], 9),
        (["pix2pixhd"], 9),
    ]
    assert sorted(n for _, names in shares for n in names) == sorted(cell.id for cell in cells)
    whole = cells_of(ARMS)
    for needed, names in jobs(whole, 14):
        assert {synthetic_set(Cell.parse(name).method) for name in names} <= {*needed, ""}
        assert len({name.partition("_")[0].replace("base", "controlnet") for name in needed}) <= 1
        assert len(names) <= 14 + 2


@pytest.mark.parametrize("per_job", [1, 5, 14])
def test_what_may_be_one_training_is_in_one_job(per_job):
    cells = cells_of(["table", "steps"])
    job_of = {name: i for i, (_, names) in enumerate(jobs(cells, per_job)) for name in names}
    assert sorted(job_of) == sorted(cell.id for cell in cells)
    for cell in cells:
        if cell.amount == 3:
            same = cell.id.replace("-epochs-", "-steps-")
            assert job_of[cell.id] == job_of[same]


def test_a_changed_seed_moves_no_other_cell_to_another_job():
    grids = [cells_of(networks=["unet"], seeds=seeds) for seeds in ([0, 1], [0, 9])]
    for (_, before), (_, after) in zip(*(jobs(cells, 3) for cells in grids), strict=True):
        assert {n for n in before if n not in after} == {n for n in before if "seed1" in n}


def test_names_round_trip():
    cells = cells_of(ARMS, seeds=(0, 12))
    assert [Cell.parse(cell.id) for cell in cells] == cells
    for wrong in ("unet", "unet-real-0-seed2", "unet-real-x-share100-epochs-seed0"):
        with pytest.raises(ValueError, match="is not a cell; a valid name is unet-controlnet-100-"):
            Cell.parse(wrong)
