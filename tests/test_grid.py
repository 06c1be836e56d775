"""The grid of Table 2, its arms beyond the paper, and its jobs."""

from dataclasses import replace

import pytest

from lesionlib.engine import settings as config
from lesionlib.masks import recipe
from lesionlib.segmentation.grid import (
    ARMS,
    COST,
    MODES,
    PLATEAU,
    Cell,
    control_sets,
    jobs,
    of_generator,
    planned_cells,
    synthetic_set,
    treatment,
)


def cells_of(arms=("table",), networks=("unet", "dcsaunet"), seeds=(0, 1, 2), **more):
    own = {"networks": list(networks), "seeds": list(seeds), "epochs": 1}
    own["arms"] = list(dict.fromkeys(arms))
    own |= {"methods": ["controlnet", "pix2pixhd"], "synthetic_amounts": [1, 2, 3]}
    own |= {"data_shares": [10, 50], "control_share": 50, "equal_epochs_up_to": 0}
    return planned_cells(config.load("quick", own | more))


def test_the_papers_table_is_complete_and_in_an_order_that_fills_it_by_seeds():
    cells = cells_of(synthetic_amounts=[100, 300, 500])
    table = [cell for cell in cells if cell.share == 100]
    assert len(table) == len(set(table)) == 2 * (1 + 2 * 3) * 3 == 42
    assert [cell.id for cell in table[:3]] == [
        "unet-real-0-share100-epochs-seed0",
        "unet-controlnet-100-share100-epochs-seed0",
        "unet-controlnet-300-share100-epochs-seed0",
    ]
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert [c.network for c in table[:14]] == ["unet"] * 7 + ["dcsaunet"] * 7


def test_every_arm_adds_what_it_says_with_equal_steps_and_for_the_networks_of_controls():
    table = set(cells_of(["table", "steps"]))
    added = {arm: [c for c in cells_of(["table", "steps", arm]) if c not in table] for arm in ARMS}
    assert {cell.network for arm in added.values() for cell in arm} == {"unet"}
    named = {
        arm: {(c.method, c.amount, c.share) for c in some if c.schedule == "steps"}
        for arm, some in added.items()
    }
    assert named == {
        "table": set(),
        "steps": set(),
        "real_pairs": {("real_pairs", 100, 100), ("real_pairs", 100, 50)},
        "shuffled": {("controlnet_shuffled", 1, 50)},
        "classical": {("classical", 0, 100)},
        "plus": set(),
        "synthetic_only": {("controlnet", 3, 0), ("pix2pixhd", 3, 0)},
        "masks": {("controlnet_real", 1, 50), ("controlnet_fitted", 1, 50)},
        "prompts": {("controlnet_empty", 1, 50), ("controlnet_uniform", 1, 50)},
        "filtered": {("controlnet_best", 1, 50), ("pix2pixhd_best", 1, 50)},
        "mixing": {("controlnet_first", 1, 50), ("controlnet_mixed", 1, 50)},
        "base": {("base", 1, 50)},
        "low_data": {("real", 0, 10)},
    }
    epochs = {c.method for some in added.values() for c in some if c.schedule == "epochs"}
    assert epochs == {"real_pairs"}
    at_control_share = {(c.method, c.amount) for c in table if c.share == 50}
    assert at_control_share == {("real", 0), ("controlnet", 1), ("pix2pixhd", 1)}


def test_with_the_whole_of_s_train_as_control_share_every_low_share_gets_pairs():
    cells = cells_of(["steps", "low_data", "shuffled"], control_share=100)
    low = {(c.method, c.amount, c.share) for c in cells if c.share < 100}
    methods = (("real", 0), ("controlnet", 1), ("pix2pixhd", 1))
    assert low == {(m, a, share) for share in (10, 50) for m, a in methods}
    assert {c.share for c in cells if c.method == "controlnet_shuffled"} == {100}


def test_the_curve_of_real_pairs_has_shares_of_g_too():
    cells = cells_of(["steps", "real_pairs", "low_data"], real_pairs=[25, 100], seeds=[0])
    found = [(c.amount, c.share) for c in cells if c.method == "real_pairs"]
    assert found == [(100, 100), (100, 50), (100, 10), (25, 100)]


def test_a_brief_network_sees_s_train_alone_and_the_largest_amount_and_perhaps_its_headroom():
    own = dict(brief_networks=["dcsaunet"], seeds=[0])
    arms = ["table", "steps", "real_pairs", "low_data", "filtered"]
    brief = [c for c in cells_of(arms, **own) if c.network == "dcsaunet"]
    assert [(c.method, c.amount, c.share, c.schedule) for c in brief] == [
        ("real", 0, 100, "steps"),
        ("controlnet", 3, 100, "steps"),
    ]
    more = [c for c in cells_of(arms, control_networks=["dcsaunet"], **own) if c not in brief]
    assert {(c.method, c.amount, c.share) for c in more if c.network == "dcsaunet"} == {
        ("real", 0, 50),
        ("real_pairs", 100, 100),
        ("real_pairs", 100, 50),
        ("controlnet", 1, 50),
    }


def test_few_seeds_serve_all_but_s_train_alone():
    arms = ["steps", "real_pairs", "low_data", "classical", "shuffled"]
    cells = cells_of(arms, ["unet"], arm_seeds=1)
    more = {(c.method, c.share) for c in cells if c.seed > 0}
    assert more == {("real", 100)}
    assert {c.seed for c in cells if c.method == "classical" or c.share == 10} == {0}


def test_equal_epochs_may_end_at_an_amount():
    cells = cells_of(["table", "steps", "real_pairs"], equal_epochs_up_to=2)
    amounts = {s: {c.amount for c in cells if c.schedule == s} for s in ("epochs", "steps")}
    assert amounts == {"epochs": {0, 1, 2}, "steps": {0, 1, 2, 3, 100}}


def test_every_generator_seed_is_in_the_papers_table_only():
    cells = cells_of(["steps", "filtered"], generator_seeds=[4, 7])
    methods = {c.method for c in cells}
    assert {"controlnet_seed7", "pix2pixhd_seed7"} <= methods
    assert not any("seed7_" in method for method in methods)
    assert {c.share for c in cells if c.method.endswith("_seed7")} == {100}
    assert of_generator("controlnet_seed7") == ("controlnet", "7")
    assert of_generator("controlnet_best") == ("controlnet_best", "first")


def test_controls_follow_the_papers_schedule_if_there_is_no_other():
    assert {cell.schedule for cell in cells_of(["table", "classical"])} == {"epochs"}


def test_each_network_first_finds_its_plateau_unless_epochs_are_given():
    cells = cells_of(epochs=0)
    assert [c.id for c in cells if c.schedule == PLATEAU] == [c.id for c in cells[:2]]
    assert cells[1].id == "dcsaunet-real-0-share100-plateau-seed0"
    assert not any(c.schedule == PLATEAU for c in cells_of(epochs=3))


def test_sets_for_controls_are_those_of_the_other_mask_modes():
    assert MODES == recipe.MODES
    assert control_sets(["masks"], "fitted") == ["controlnet_paper", "controlnet_real"]
    prompts = ["controlnet_empty", "controlnet_uniform"]
    assert control_sets(["table", "base", "prompts"], "paper") == [*prompts, "base"]
    methods = ("real", "real_pairs", "classical", "base", "pix2pixhd_best", "gan_mixed")
    assert [synthetic_set(m) for m in methods] == ["", "", "", "base", "pix2pixhd", "gan"]
    assert [treatment(m) for m in methods] == ["", "", "", "", "best", "mixed"]


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


def test_jobs_follow_the_order_of_the_grid_and_wait_for_one_generator_and_network_only():
    cells = cells_of(["table", "steps", "filtered"], epochs=0)
    shares = jobs(cells, 9)
    assert [names for _, names in shares[:2]] == [[cells[0].id], [cells[1].id]]
    assert sorted(n for _, names in shares for n in names) == sorted(cell.id for cell in cells)
    position = {cell.id: i for i, cell in enumerate(cells)}
    firsts = [position[names[0]] for _, names in shares]
    assert firsts == sorted(firsts)
    seeds = [min(Cell.parse(name).seed for name in names) for _, names in shares]
    assert seeds == sorted(seeds)  # the first jobs hold all arms of the first seed
    whole = cells_of(ARMS)
    for needed, names in jobs(whole, 14):
        assert {synthetic_set(Cell.parse(name).method) for name in names} <= {*needed, ""}
        assert len({name.partition("_")[0].replace("base", "controlnet") for name in needed}) <= 1
        assert len({Cell.parse(name).network for name in names}) == 1
        trainings = {replace(c, schedule="") if not c.amount else c for c in map(Cell.parse, names)}
        assert sum(COST[c.network] for c in trainings) <= 14 + max(COST.values())


@pytest.mark.parametrize("per_job", [1, 5, 14])
def test_what_may_be_one_training_is_in_one_job(per_job):
    cells = cells_of(["table", "steps"])
    job_of = {name: i for i, (_, names) in enumerate(jobs(cells, per_job)) for name in names}
    assert sorted(job_of) == sorted(cell.id for cell in cells)
    for cell in cells:
        if not cell.amount and cell.share == 100:
            same = cell.id.replace("-epochs-", "-steps-")
            assert job_of[cell.id] == job_of[same]


def test_a_changed_seed_moves_no_other_cell_to_another_job():
    grids = [cells_of(networks=["unet"], seeds=seeds) for seeds in ([0, 1], [0, 9])]
    for (_, before), (_, after) in zip(*(jobs(cells, 3) for cells in grids), strict=True):
        assert {n for n in before if n not in after} == {n for n in before if "seed1" in n}


def test_names_round_trip():
    cells = cells_of(ARMS, seeds=(0, 12), epochs=0)
    assert [Cell.parse(cell.id) for cell in cells] == cells
    for wrong in ("unet", "unet-real-0-seed2", "unet-real-x-share100-epochs-seed0"):
        with pytest.raises(ValueError, match="is not a cell; a valid name is unet-controlnet-100-"):
            Cell.parse(wrong)
